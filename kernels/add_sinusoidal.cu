// x*input_scale + amplitude*PE(position), in place, out of place, or PE alone: the CUDA twin of add_sinusoidal.py.
//
// PE[p, sine column f] = sin(p w_f), PE[p, cosine column f] = cos(p w_f)  (Vaswani et al. 2017, section 3.5).
//
//     x, out: (B, T, H, D), byte strides of any sign, f16 | bf16 | f32 | f64, aligned to the element; x may be out, or 0 (PE alone)
//     positions: (B, T, H) i64 in units of 2^-32, byte strides, or 0: row t is at start + t
//     mask: (B, T) bytes, byte strides, or 0; a row whose byte is 0 keeps x unscaled
//     frequencies, whole_turns: (F,) u64, the fraction (2^-64 turn) and the integer part of a frequency in turns, F = ceil(D/2)
//     cosines, sines: (8, F) f32, cos(j w_f) and sin(j w_f) for j = 0 ... 7; sines negated where the cosine is the first function
//
// The variants `_vec16_*` need x, out and all their outer strides aligned to 16 bytes, contiguous columns, and whole vectors in D
// (interleaved) or D/2 (concatenated); `_columns` takes anything else, one pair of columns a thread, and the column without partner.
//
// Grid: x over the pairs of a row, y over groups of eight rows that share an anchor, z over sequences. The encoding of `ROWS` rows
// is kept in registers and added to every sequence and head that shares the positions. All of a thread's loads come before its
// first store: in place, the compiler cannot move a load across a store. Bytes moved per element: read and write of x, and from the
// caches 8 of tables for each row and pair. The launch bounds ask for three blocks a multiprocessor: for more, ptxas would spill a register.

#include "sinusoidal_rows.cuh"

template <class E, class Layout>
DEVICE void add_vectors(const AddSinusoidal& call) {
    typedef typename E::real Real;
    enum { V = Layout::V, P = Layout::P, ROWS = Layout::ROWS, N = E::N };
    const i64 unit = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (unit * P >= call.width / 2) return;
    const i64 groups = (call.rows - first_row(call, 0) + ANCHOR_ROWS - 1) / ANCHOR_ROWS;
    const Real scale = (Real)call.input_scale;
    Frequencies<Real, P> frequencies;
    frequencies.load(call, unit * P);
    for (i64 group = (i64)blockIdx.y * blockDim.y + threadIdx.y; group < groups; group += (i64)gridDim.y * blockDim.y) {
#pragma unroll 1
        for (int part = 0; part < ANCHOR_ROWS; part += ROWS) {
            const i64 t0 = first_row(call, group) + part;
            if (t0 + ROWS <= 0 || t0 >= call.rows) continue;
            Real pe[ROWS][V][N];
            bool ready = false;
            for (i64 b = blockIdx.z; b < call.batch; b += gridDim.z) {
                for (i64 h = 0; h < call.heads; h++) {
                    if (!ready || varies(call)) {
                        ready = true;
#pragma unroll
                        for (int r = 0; r < ROWS; r++) {
                            Real u[P], v[P];
#pragma unroll
                            for (int i = 0; i < P; i++) u[i] = v[i] = 0;
                            if (t0 + r >= 0 && t0 + r < call.rows)
                                frequencies.row(call, position_of(call, b, t0 + r, h), unit * P, u, v);
                            Layout::order(u, v, pe[r]);
                        }
                    }
                    uint4 words[ROWS][V];
                    bool inside[ROWS], kept[ROWS];
                    const i64 in = call.x + b * call.x_batch_stride + h * call.x_head_stride;
                    const i64 to = call.out + b * call.out_batch_stride + h * call.out_head_stride;
#pragma unroll
                    for (int r = 0; r < ROWS; r++) {
                        const i64 t = t0 + r;
                        inside[r] = t >= 0 && t < call.rows;
                        kept[r] = inside[r] && is_kept(call, b, t);
#pragma unroll
                        for (int k = 0; k < V; k++) {
                            words[r][k] = make_uint4(0, 0, 0, 0);
                            if (inside[r] && call.x != 0)
                                words[r][k] = *(const uint4*)(in + t * call.x_row_stride + Layout::offset(call, unit, k));
                        }
                    }
#pragma unroll
                    for (int r = 0; r < ROWS; r++) {
                        if (!inside[r]) continue;
#pragma unroll
                        for (int k = 0; k < V; k++) {
                            if (kept[r]) {
                                Real value[N];
                                E::unpack(words[r][k], value);
#pragma unroll
                                for (int i = 0; i < N; i++)
                                    value[i] = call.x != 0 ? add_(mul_(value[i], scale), pe[r][k][i]) : pe[r][k][i];
                                words[r][k] = E::pack(value);
                            }
                            if (kept[r] || call.x != call.out)
                                *(uint4*)(to + (t0 + r) * call.out_row_stride + Layout::offset(call, unit, k)) = words[r][k];
                        }
                    }
                }
            }
        }
    }
}

// One pair of columns, or the column without a partner.
template <class E>
DEVICE void add_columns(const AddSinusoidal& call) {
    typedef typename E::real Real;
    typedef typename E::storage Storage;
    enum { ROWS = sizeof(Real) == 8 ? 2 : 4 };
    const i64 f = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    const i64 pairs = call.width / 2;
    if (f >= (call.width + 1) / 2) return;
    const bool tail = f == pairs;
    const bool tail_is_first = (call.tail_is_cosine != 0) == (call.cosine_first != 0);
    const i64 step = call.interleaved ? 2 : 1;
    const i64 columns[2] = {tail ? call.tail_column : f * step,
                            tail ? call.tail_column : f * step + (call.interleaved ? 1 : call.second_half)};
    const int count = tail ? 1 : 2;
    const i64 groups = (call.rows - first_row(call, 0) + ANCHOR_ROWS - 1) / ANCHOR_ROWS;
    const Real scale = (Real)call.input_scale;
    Frequencies<Real, 1> frequencies;
    frequencies.load(call, f);
    for (i64 group = (i64)blockIdx.y * blockDim.y + threadIdx.y; group < groups; group += (i64)gridDim.y * blockDim.y) {
#pragma unroll 1
        for (int part = 0; part < ANCHOR_ROWS; part += ROWS) {
            const i64 t0 = first_row(call, group) + part;
            if (t0 + ROWS <= 0 || t0 >= call.rows) continue;
            Real pe[ROWS][2];
            bool ready = false;
            for (i64 b = blockIdx.z; b < call.batch; b += gridDim.z) {
                for (i64 h = 0; h < call.heads; h++) {
                    if (!ready || varies(call)) {
                        ready = true;
#pragma unroll
                        for (int r = 0; r < ROWS; r++) {
                            Real u = 0, v = 0;
                            if (t0 + r >= 0 && t0 + r < call.rows)
                                frequencies.row(call, position_of(call, b, t0 + r, h), f, &u, &v);
                            pe[r][0] = tail && !tail_is_first ? v : u;
                            pe[r][1] = v;
                        }
                    }
                    Storage stored[ROWS][2];
                    bool inside[ROWS], kept[ROWS];
                    const i64 in = call.x + b * call.x_batch_stride + h * call.x_head_stride;
                    const i64 to = call.out + b * call.out_batch_stride + h * call.out_head_stride;
#pragma unroll
                    for (int r = 0; r < ROWS; r++) {
                        const i64 t = t0 + r;
                        inside[r] = t >= 0 && t < call.rows;
                        kept[r] = inside[r] && is_kept(call, b, t);
#pragma unroll
                        for (int k = 0; k < 2; k++) {
                            stored[r][k] = 0;
                            if (inside[r] && k < count && call.x != 0)
                                stored[r][k] = *(const Storage*)(in + t * call.x_row_stride + columns[k] * call.x_column_stride);
                        }
                    }
#pragma unroll
                    for (int r = 0; r < ROWS; r++) {
#pragma unroll
                        for (int k = 0; k < 2; k++) {
                            if (!inside[r] || k >= count) continue;
                            if (kept[r]) {
                                const Real x = E::load(stored[r][k]);
                                stored[r][k] = E::store(call.x != 0 ? add_(mul_(x, scale), pe[r][k]) : pe[r][k]);
                            }
                            if (kept[r] || call.x != call.out)
                                *(Storage*)(to + (t0 + r) * call.out_row_stride + columns[k] * call.out_column_stride) = stored[r][k];
                        }
                    }
                }
            }
        }
    }
}

#define ENTRIES(E)                                                                                                            \
    extern "C" __global__ void __launch_bounds__(128, 3)                                                                         \
        add_sinusoidal_##E##_vec16_interleaved(const __grid_constant__ AddSinusoidal call) { add_vectors<E, Interleaved<E>>(call); } \
    extern "C" __global__ void __launch_bounds__(128, 3)                                                                         \
        add_sinusoidal_##E##_vec16_concatenated(const __grid_constant__ AddSinusoidal call) { add_vectors<E, Concatenated<E>>(call); } \
    extern "C" __global__ void __launch_bounds__(128, 3)                                                                         \
        add_sinusoidal_##E##_columns(const __grid_constant__ AddSinusoidal call) { add_columns<E>(call); }

ENTRIES(f32)
ENTRIES(f64)
ENTRIES(f16)
ENTRIES(bf16)
