// x*input_scale + amplitude*PE(position), in place, out of place, or PE alone: the CUDA twin of add_sinusoidal.py, which describes the
// arguments. Here arrays are aligned to the element, and frequencies have no margin.
//
// The variants `_vec16_*` need x, out and all their outer strides aligned to 16 bytes, contiguous columns, and whole vectors in D
// (interleaved) or D/2 (concatenated); `_columns` takes anything else, one pair of columns a thread, and the column without partner.
//
// Grid: x over the pairs of a row, y over groups of eight rows that share an anchor, z over sequences. The encoding of `ROWS` rows is kept in
// registers and added to every sequence and head that shares the positions. All of a thread's loads come before its first store: in place,
// the compiler cannot move a load across a store. Bytes of the mask come first and rows of x before the encoding is made, so that nothing
// waits for one load before the others are on their way. Bytes moved per element: read and write of x, and from the caches 8 of tables for
// each row and pair. The launch bounds ask for three blocks a multiprocessor: for more, ptxas would spill a register.

#include "sinusoidal_rows.cuh"

template <class Layout>
DEVICE void add(const AddSinusoidal& call) {
    typedef typename Layout::Element E;
    typedef typename E::real Real;
    typedef typename E::word Word;
    enum { V = Layout::V, P = Layout::P, ROWS = Layout::ROWS, N = Layout::N };
    Counter counter(call, blockIdx.z, first_row(call, (i64)blockIdx.y * blockDim.y));
    const i64 unit = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (unit * P >= (call.width + 1) / 2) return;
    const Layout at(call, unit);
    const i64 groups = (call.rows - first_row(call, 0) + ANCHOR_ROWS - 1) / ANCHOR_ROWS;
    const Real scale = (Real)call.input_scale;
    const i64 x_step = step<typename E::storage, N>(call.x_column_stride);
    const i64 out_step = step<typename E::storage, N>(call.out_column_stride);
    Frequencies<Real, P> frequencies;
    frequencies.load(call, unit * P);
    Sequence sequence;
    for (i64 group = (i64)blockIdx.y * blockDim.y + threadIdx.y; group < groups; group += (i64)gridDim.y * blockDim.y) {
#pragma unroll 1
        for (int part = 0; part < ANCHOR_ROWS; part += ROWS) {
            const i64 t0 = first_row(call, group) + part;
            if (t0 + ROWS <= 0 || t0 >= call.rows) continue;
            Real pe[ROWS][V][N];
            bool ready = false;
            for (i64 b = blockIdx.z; b < call.batch; b += gridDim.z) {
                for (i64 h = 0; h < call.heads; h++) {
                    Word words[ROWS][V];
                    bool inside[ROWS];
                    u8 mask[ROWS];
                    const i64 in = call.x + b * call.x_batch_stride + h * call.x_head_stride;
                    const i64 to = call.out + b * call.out_batch_stride + h * call.out_head_stride;
#pragma unroll
                    for (int r = 0; r < ROWS; r++) {
                        inside[r] = t0 + r >= 0 && t0 + r < call.rows;
                        mask[r] = inside[r] ? mask_at(call, b, t0 + r) : 0;
                    }
#pragma unroll
                    for (int r = 0; r < ROWS; r++) {
#pragma unroll
                        for (int k = 0; k < V; k++) {
                            words[r][k] = Word();
                            if (inside[r] && !(k > 0 && at.tail) && call.x != 0)
                                words[r][k] = *global<const Word>(in + (t0 + r) * call.x_row_stride + at.columns[k] * x_step);
                        }
                    }
                    if (!ready || varies(call)) {
                        ready = true;
                        counter.reach(call, b, t0);
#pragma unroll
                        for (int r = 0; r < ROWS; r++) {
                            Real u[P], v[P];
#pragma unroll
                            for (int i = 0; i < P; i++) u[i] = v[i] = 0;
                            if (inside[r]) {
                                frequencies.row(call, position_of(call, b, t0 + r, h, sequence, counter), unit * P, u, v);
                                counter.pass(mask[r] != 0);
                            }
                            at.order(u, v, pe[r]);
                        }
                    }
#pragma unroll
                    for (int r = 0; r < ROWS; r++) {
#pragma unroll
                        for (int k = 0; k < V; k++) {
                            if (!inside[r] || (k > 0 && at.tail)) continue;
                            if (mask[r] != 0) {
                                Real value[N];
                                E::unpack(words[r][k], value);
#pragma unroll
                                for (int i = 0; i < N; i++)
                                    value[i] = call.x != 0 ? add_(mul_(value[i], scale), pe[r][k][i]) : pe[r][k][i];
                                words[r][k] = E::pack(value);
                            }
                            if (mask[r] != 0 || call.x != call.out)
                                *global<Word>(to + (t0 + r) * call.out_row_stride + at.columns[k] * out_step) = words[r][k];
                        }
                    }
                }
            }
        }
    }
}

#define KERNEL(E, VARIANT, LAYOUT)                                  \
    extern "C" __global__ void __launch_bounds__(128, 3)            \
        add_sinusoidal_##E##_##VARIANT(const __grid_constant__ AddSinusoidal call) { add<LAYOUT<E>>(call); }
#define ENTRIES(E) KERNEL(E, vec16_interleaved, Interleaved) KERNEL(E, vec16_concatenated, Concatenated) KERNEL(E, columns, OnePair)

ENTRIES(f32) ENTRIES(f64) ENTRIES(f16) ENTRIES(bf16)
