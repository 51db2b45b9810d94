// Pairs of channels of q and k rotated by the angles of their rows: what `rotate.cu` and `rotate_table.cu` have in common; the CUDA twin of
// rotate_pairs.py, which describes the arguments. Here arrays are aligned to the element.
//
// Grid: x over the pairs of a row (with, in the kernels named `pairs` and out of place, the channels that are not rotated) in each group of
// heads, of which there are as many as fit; y over rows, z over sequences. A thread owns its pairs in every head of its group: it makes
// their cosines and sines once, and has two heads in flight (one for float8). `vec16` kernels take 16 bytes of each of two halves, or 16 bytes of adjacent
// pairs, at a time. With OUT defined, results are elements of that float8. Bytes moved per element: one read and one write of q and k.

#include "arithmetic.cuh"
#include "Rotated.abi"
#include "RotatePairs.abi"

// The heads of q or k at one row, of which a thread takes every `step`th.
struct Heads {
    i64 from, to, heads, stride, stride_out, column, column_out;
    double factor;

    DEVICE Heads(const Rotated& array, i64 b, i64 t) {
        from = array.x + b * array.batch_stride + t * array.row_stride;
        to = array.out + b * array.out_batch_stride + t * array.out_row_stride;
        heads = array.heads;
        stride = array.head_stride;
        stride_out = array.out_head_stride;
        column = array.column_stride;
        column_out = array.out_column_stride;
        factor = array.out_factor;
    }
};

template <class Real>
DEVICE void rotate(Real& u, Real& v, Real cosine, Real sine) {
    const Real first = fma_(u, cosine, -mul_(v, sine));
    v = fma_(v, cosine, mul_(u, sine));
    u = first;
}

// What a word of E becomes in the result: a word of numbers, or what is copied.
template <class E>
struct Written {
#ifdef OUT
    typedef OUT::storage storage;
    typedef typename Either<E::N == 1, u8, u16>::type Narrow;
    typedef typename Either<E::N <= 2, Narrow, typename Either<E::N == 4, u32, u64>::type>::type word;
    static DEVICE word pack(const typename E::real* x, double factor) {
        union {
            word all;
            storage elements[E::N];
        };
#pragma unroll
        for (int i = 0; i < E::N; i++) elements[i] = OUT::store(narrowed<OUT>(mul_(x[i], (typename E::real)factor)));
        return all;
    }
    static DEVICE word copy(typename E::word from, double factor) {
        typename E::real x[E::N];
        E::unpack(from, x);
        return pack(x, factor);
    }
#else
    typedef typename E::storage storage;
    typedef typename E::word word;
    static DEVICE word pack(const typename E::real* x, double) { return E::pack(x); }
    static DEVICE word copy(word from, double) { return from; }
#endif
};

// Rotate a unit in some heads: V words, in which the pairs lie side by side if there is one, else an element of each word is a pair. Units
// of single elements have any strides, and may be one channel that is not rotated.
template <class E, int V>
struct Unit {
    typedef typename E::real Real;
    typedef typename E::word Word;
    typedef Written<E> Result;
    enum { N = V * E::N / 2 };

    static DEVICE void run(const RotatePairs& call, const Heads& at, i64 unit, bool kept, i64 group, i64 step, const Real* cosine,
                           const Real* sine) {
        const bool rotates = E::N > 1 || unit < call.pairs;
        const i64 other = unit - call.pairs;
        const i64 one = rotates ? call.first_channel + unit * E::N * (V == 2 && call.interleaved ? 2 : 1)
                              : other < call.first_channel ? other : other + 2 * call.pairs;
        const i64 channels[2] = {one, one + (call.interleaved ? 1 : call.pairs)};
        const i64 x_step = E::N == 1 ? at.column : (i64)sizeof(typename E::storage);
        const i64 out_step = E::N == 1 ? at.column_out : (i64)sizeof(typename Result::storage);
        const i64 apart[2] = {(channels[1] - channels[0]) * x_step, (channels[1] - channels[0]) * out_step};
        i64 h = group, in = at.from + h * at.stride + channels[0] * x_step, out = at.to + h * at.stride_out + channels[0] * out_step;
#ifdef OUT  // the conversion needs the registers of a second head
        for (; h < at.heads; h += step, in += step * at.stride, out += step * at.stride_out)
            heads<1>(in, out, 0, 0, apart, rotates, kept, at.factor, cosine, sine);
#else
        for (; h + step < at.heads; h += 2 * step) {
            heads<2>(in, out, step * at.stride, step * at.stride_out, apart, rotates, kept, at.factor, cosine, sine);
            in += 2 * step * at.stride;
            out += 2 * step * at.stride_out;
        }
        if (h < at.heads) heads<1>(in, out, 0, 0, apart, rotates, kept, at.factor, cosine, sine);
#endif
    }

    // So many heads, all of whose loads come before the first store.
    template <int HEADS>
    static DEVICE void heads(i64 in, i64 out, i64 stride, i64 stride_out, const i64* apart, bool rotates, bool kept, double factor,
                             const Real* cosine, const Real* sine) {
        Word words[HEADS][V];
#pragma unroll
        for (int j = 0; j < HEADS; j++) {
#pragma unroll
            for (int k = 0; k < V; k++) words[j][k] = k == 0 || rotates ? *global<const Word>(in + j * stride + k * apart[0]) : Word();
        }
#pragma unroll
        for (int j = 0; j < HEADS; j++) {
            typename Result::word results[V];
            if (kept && rotates) {
                turn(words[j], cosine, sine, factor, results);
            } else {
#pragma unroll
                for (int k = 0; k < V; k++) results[k] = Result::copy(words[j][k], factor);
            }
#pragma unroll
            for (int k = 0; k < V; k++)
                if (k == 0 || rotates) *global<typename Result::word>(out + j * stride_out + k * apart[1]) = results[k];
        }
    }

    static DEVICE void turn(const Word* words, const Real* cosine, const Real* sine, double factor,
                            typename Result::word* results) {
        Real x[V * E::N];
#pragma unroll
        for (int k = 0; k < V; k++) E::unpack(words[k], x + k * E::N);
#pragma unroll
        for (int i = 0; i < N; i++) rotate(x[V == 1 ? 2 * i : i], x[V == 1 ? 2 * i + 1 : N + i], cosine[i], sine[i]);
#pragma unroll
        for (int k = 0; k < V; k++) results[k] = Result::pack(x + k * E::N, factor);
    }
};

// `Angles::at<N>` makes the cosines and sines of N neighbouring pairs at a row.
template <class E, class Unit, class Angles, class Arguments>
DEVICE void rotate_pairs(const Arguments& call, i64 units) {
    typedef typename E::real Real;
    enum { N = Unit::N };
    Counter counter(call, (i64)blockIdx.z * blockDim.z, (i64)blockIdx.y * blockDim.y);
    const i64 threads = (i64)gridDim.x * blockDim.x, thread = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    u32 group = 0, groups = 1;
    if (threads >= 2 * units) {  // fewer than 2^32
        groups = (u32)threads / (u32)units;
        group = (u32)thread / (u32)units;
    }
    const i64 unit = thread - group * units;
    if (unit >= units || group >= groups) return;
    const bool rotates = unit * N < call.pairs;
    for (i64 t = (i64)blockIdx.y * blockDim.y + threadIdx.y; t < call.rows; t += (i64)gridDim.y * blockDim.y) {
        Real cosine[N], sine[N];
        bool ready = false;
        for (i64 b = (i64)blockIdx.z * blockDim.z + threadIdx.z; b < call.batch; b += (i64)gridDim.z * blockDim.z) {
            if (!ready || sequences_differ(call)) {
                ready = true;
                counter.reach(call, b, t);
#pragma unroll
                for (int i = 0; i < N; i++) cosine[i] = sine[i] = 0;
                if (rotates) Angles::template at<N>(call, unit * N, b, t, counter, cosine, sine);
#pragma unroll
                for (int i = 0; i < N; i++) sine[i] = call.inverse ? -sine[i] : sine[i];
            }
            const bool kept = mask_at(call, b, t) != 0;
#pragma unroll 1
            for (int which = 0; which < 2; which++) {
                const Rotated& array = which ? call.k : call.q;
                if (array.out != 0 && ((kept && rotates) || array.x != array.out))
                    Unit::run(call, Heads(array, b, t), unit, kept, group, groups, cosine, sine);
            }
        }
    }
}

// Three kernels for an element type. Four blocks a multiprocessor leave a thread 128 registers, with which none spills on any architecture.
// `pairs` has a thread for every channel that is not rotated too.
#define KERNEL(NAME, E, VARIANT, ELEMENT, V, UNITS)                      \
    extern "C" __global__ void __launch_bounds__(128, 4)                 \
        NAME##_##E##_##VARIANT(const __grid_constant__ Arguments call) { \
        rotate_pairs<E, Unit<ELEMENT, V>, Angles<E> >(call, UNITS);      \
    }
#define KERNELS(NAME, E)                                                  \
    KERNEL(NAME, E, pairs, One<E>, 2, call.head_dim - call.pairs)         \
    KERNEL(NAME, E, vec16_half, E, 2, call.pairs / E::N)                  \
    KERNEL(NAME, E, vec16_interleaved, E, 1, 2 * call.pairs / E::N)
#define ALL_KERNELS(NAME) KERNELS(NAME, f32) KERNELS(NAME, f64) KERNELS(NAME, f16) KERNELS(NAME, bf16)
