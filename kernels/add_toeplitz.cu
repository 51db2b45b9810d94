// x*input_scale + f_h(key - query), and -inf where the key comes after the query: the CUDA twin of add_toeplitz.py, which describes the
// arguments. Here arrays are aligned to the element, vectors of columns that become -inf are not read, and no value makes an access out of
// bounds.
//
// Grid: x over the columns of a row, y over groups of rows, z over sequences and heads. `vec16` kernels take 16 bytes of columns.
// Bytes moved per element: read and write of x, and 4 to 8 of f from the caches; one write of what is causal.

#include "arithmetic.cuh"
#include "AddToeplitz.abi"

enum { ROWS = 4 };

DEVICE void set_hidden(float& value) { value = float_of(0xff800000u); }
DEVICE void set_hidden(double& value) { value = float_of(0xfff0000000000000ULL); }

DEVICE i64 query_of(const AddToeplitz& call, i64 b, i64 i) {
    if (call.queries == 0) return call.start + (i << 32);
    return *(const i64*)(call.queries + b * call.queries_batch_stride + i * call.queries_row_stride);
}

DEVICE i64 key_of(const AddToeplitz& call, i64 b, i64 j) {
    if (call.keys == 0) return j << 32;
    return *(const i64*)(call.keys + b * call.keys_batch_stride + j * call.keys_column_stride);
}

DEVICE bool is_hidden(const AddToeplitz& call, i64 query, i64 key) {
    return call.causal != 0 && query != NOT_A_POSITION && key > query;
}

// The bias of a column; `values` are those of its row.
template <class Real>
DEVICE Real value_of(const AddToeplitz& call, const Real* values, double slope, i64 query, i64 key, i64 column) {
    Real result;
    if (query == NOT_A_POSITION || key == NOT_A_POSITION) {
        set_nan(result);
        return result;
    }
    const i64 distance = (key >> 32) - (query >> 32);
    if (call.slopes != 0) {
        const i64 far = distance < 0 ? -distance : distance;
        const double factor = __ll2double_rn(call.symmetric != 0 ? -far : distance);
        return (Real)add_(mul_(slope, factor), 0.0);  // no -0
    }
    const i64 above = distance < call.low ? call.low : distance;
    const i64 inside = above > call.high ? call.high : above;
    return values[call.by_column != 0 ? column : inside - call.low];
}

// A word of neighbouring elements of a row at a time.
template <class E>
DEVICE void add(const AddToeplitz& call) {
    typedef typename E::real Real;
    typedef typename E::word Word;
    enum { N = E::N };
    const i64 column = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (column >= call.columns) return;
    const Real scale = (Real)call.input_scale;
    const i64 pairs = call.batch * call.heads;
    for (i64 pair = blockIdx.z; pair < pairs; pair += gridDim.z) {
        const i64 b = pair / call.heads, h = pair - b * call.heads;
        const double slope = call.slopes != 0 ? ((const double*)call.slopes)[h] : 0.0;
        const i64 in = call.x + b * call.x_batch_stride + h * call.x_head_stride + column * call.x_column_stride;
        const i64 to = call.out + b * call.out_batch_stride + h * call.out_head_stride + column * call.out_column_stride;
        const i64 from = call.values + b * call.values_batch_stride + h * call.values_head_stride;
        i64 keys[N];
#pragma unroll
        for (int k = 0; k < N; k++) keys[k] = key_of(call, b, column + k);
        for (i64 first = ((i64)blockIdx.y * blockDim.y + threadIdx.y) * ROWS; first < call.rows;
             first += (i64)gridDim.y * blockDim.y * ROWS) {
            Word words[ROWS];
            i64 queries[ROWS];
            // All loads come before the first store.
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                words[r] = Word();
                queries[r] = NOT_A_POSITION;
                if (first + r >= call.rows) continue;
                queries[r] = query_of(call, b, first + r);
                bool visible = false;
#pragma unroll
                for (int k = 0; k < N; k++) visible = visible || !is_hidden(call, queries[r], keys[k]);
                if (visible) words[r] = *(const Word*)(in + (first + r) * call.x_row_stride);
            }
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                if (first + r >= call.rows) continue;
                const Real* values = (const Real*)(from + (first + r) * call.values_row_stride);
                Real x[N];
                E::unpack(words[r], x);
#pragma unroll
                for (int k = 0; k < N; k++) {
                    if (is_hidden(call, queries[r], keys[k])) set_hidden(x[k]);
                    else x[k] = add_(mul_(x[k], scale), value_of(call, values, slope, queries[r], keys[k], column + k));
                }
                *(Word*)(to + (first + r) * call.out_row_stride) = E::pack(x);
            }
        }
    }
}

#define KERNEL(E, VARIANT, ELEMENT)                       \
    extern "C" __global__ void __launch_bounds__(128, 3)  \
        add_toeplitz_##E##_##VARIANT(const __grid_constant__ AddToeplitz call) { add<ELEMENT>(call); }
#define ENTRIES(E) KERNEL(E, vec16, E) KERNEL(E, columns, One<E>)

ENTRIES(f32) ENTRIES(f64) ENTRIES(f16) ENTRIES(bf16)
