/* Runs recorded calls of kernels: replay CALLS RESULTS

   A call is a header of eight words and an image of the memory that it reads and writes, which is mapped where the image was taken from.
   What the kernel has made of it is appended to RESULTS. With two threads a helper works on the same blocks, as one from the queue does. */
#define _GNU_SOURCE
#include <fenv.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

typedef void kernel(int64_t call, int64_t control, int64_t thread);
#define KERNEL(label) kernel plain_##label;
#include "kernels.h"
#undef KERNEL

static const struct { const char *label; kernel *run; } kernels[] = {
#define KERNEL(label) {#label, plain_##label},
#include "kernels.h"
};

/* The entry for Python, which nobody calls here, refers to these. */
void *_Py_NoneStruct;
#define ABSENT(name) void name(void) { abort(); }
ABSENT(PyErr_BadArgument) ABSENT(PyErr_BadInternalCall) ABSENT(PyErr_Occurred) ABSENT(PyEval_RestoreThread) ABSENT(PyEval_SaveThread)
ABSENT(PyLong_AsLongLong) ABSENT(Py_IncRef)

struct header { char label[32]; int64_t call, control, address, size, threads, float_mode; };
static struct header h;
static kernel *run;

static uint64_t float_mode(void) { uint64_t mode; __asm__ volatile("mrs %0, fpcr" : "=r"(mode)); return mode; }
static void set_float_mode(uint64_t mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }

static void *help(void *unused) {
    set_float_mode((uint64_t)h.float_mode);
    run(h.call, h.control, 1);
    return unused;
}

static void fail(const char *what) { perror(what); exit(1); }

int main(int count, char **arguments) {
    if (count != 3) return 2;
    FILE *calls = fopen(arguments[1], "rb"), *results = fopen(arguments[2], "wb");
    if (!calls || !results) fail("open");
    while (fread(&h, sizeof h, 1, calls) == 1) {
        run = NULL;
        for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++)
            if (!strcmp(kernels[i].label, h.label)) run = kernels[i].run;
        if (!run) { fprintf(stderr, "no kernel %s\n", h.label); return 1; }
        void *image = mmap((void *)h.address, h.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        if (image != (void *)h.address) fail("mmap");
        if (fread(image, h.size, 1, calls) != 1) fail("read");
        uint64_t before = float_mode();
        set_float_mode((uint64_t)h.float_mode);
        pthread_t helper;
        if (h.threads == 2 && pthread_create(&helper, NULL, help, NULL)) fail("thread");
        run(h.call, h.control, h.threads == 2 ? 0 : -1);
        if (h.threads == 2) pthread_join(helper, NULL);
        if (float_mode() != (uint64_t)h.float_mode) { fprintf(stderr, "%s left another float mode\n", h.label); return 1; }
        set_float_mode(before);
        if (fwrite(image, h.size, 1, results) != 1) fail("write");
        munmap(image, h.size);
    }
    return fclose(results) ? 1 : 0;
}
