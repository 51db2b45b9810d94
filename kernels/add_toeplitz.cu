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
    return *global<const i64>(call.queries + b * call.queries_batch_stride + i * call.queries_row_stride);
}

DEVICE i64 key_of(const AddToeplitz& call, i64 b, i64 j) {
    if (call.keys == 0) return j << 32;
    return *global<const i64>(call.keys + b * call.keys_batch_stride + j * call.keys_column_stride);
}

DEVICE bool is_hidden(const AddToeplitz& call, i64 query, i64 key) {
    return call.causal != 0 && query != NOT_A_POSITION && key > query;
}

// Where column j is at j: the columns of N from this one on that are not hidden come first; how many they are.
template <int N>
DEVICE int visible_of(const AddToeplitz& call, i64 query, i64 column) {
    return call.causal != 0 && query != NOT_A_POSITION ? (int)limited((query >> 32) + 1 - column, 0, N) : N;
}

// The number, among a row's values, of that of a distance.
DEVICE i64 index_of(const AddToeplitz& call, i64 distance) { return limited(distance, call.low, call.high) - call.low; }

// The biases of N columns at j, from this one on, which lie side by side but where they are beyond an end of the values.
template <int N, class Real>
DEVICE void load_biases(const AddToeplitz& call, i64 values, i64 query, i64 column, Real* bias) {
    const i64 distance = column - (query >> 32);
    if (query == NOT_A_POSITION) {
#pragma unroll
        for (int k = 0; k < N; k++) set_nan(bias[k]);
    } else if (call.by_column != 0 || (distance >= call.low && distance + (N - 1) <= call.high)) {
        const Real* const near = global<const Real>(values) + (call.by_column != 0 ? column : distance - call.low);
#pragma unroll
        for (int k = 0; k < N; k++) bias[k] = near[k];
    } else {
#pragma unroll
        for (int k = 0; k < N; k++) bias[k] = global<const Real>(values)[index_of(call, distance + k)];
    }
}

// The bias of a column at any position; `values` are those of its row.
template <class Real>
DEVICE Real bias_of(const AddToeplitz& call, i64 values, double slope, i64 query, i64 key, i64 column) {
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
    return global<const Real>(values)[call.by_column != 0 ? column : index_of(call, distance)];
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
    const bool in_order = call.keys == 0 && call.slopes == 0;
    // The pairs of a sequence and a head, of which there may be more than blocks. Numbers of blocks are below 2^16.
    const u32 heads = (u32)limited(call.heads, 1, 1 << 16), below = blockIdx.z / heads, below_step = gridDim.z / heads;
    i64 b = below, h = blockIdx.z - below * heads;
    for (; b < call.batch; b += below_step, h += gridDim.z - below_step * heads) {
        if (h >= call.heads) {
            h -= call.heads;
            if (++b >= call.batch) break;
        }
        const double slope = call.slopes != 0 ? global<const double>(call.slopes)[h] : 0.0;
        const i64 in = call.x + b * call.x_batch_stride + h * call.x_head_stride + column * call.x_column_stride;
        const i64 to = call.out + b * call.out_batch_stride + h * call.out_head_stride + column * call.out_column_stride;
        const i64 from = call.values + b * call.values_batch_stride + h * call.values_head_stride;
        for (i64 first = ((i64)blockIdx.y * blockDim.y + threadIdx.y) * ROWS; first < call.rows;
             first += (i64)gridDim.y * blockDim.y * ROWS) {
            Word words[ROWS];
            i64 queries[ROWS];
            // All loads come before the first store.
#pragma unroll
            for (int r = 0; r < ROWS; r++) queries[r] = first + r < call.rows ? query_of(call, b, first + r) : NOT_A_POSITION;
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                words[r] = Word();
                if (first + r >= call.rows) continue;
                bool visible = in_order && visible_of<N>(call, queries[r], column) > 0;
                if (!in_order) {
#pragma unroll
                    for (int k = 0; k < N; k++) visible = visible || !is_hidden(call, queries[r], key_of(call, b, column + k));
                }
                if (visible) words[r] = *global<const Word>(in + (first + r) * call.x_row_stride);
            }
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                if (first + r >= call.rows) continue;
                const i64 values = from + (first + r) * call.values_row_stride;
                Real x[N], bias[N];
                E::unpack(words[r], x);
                if (in_order) {
                    const int visible = visible_of<N>(call, queries[r], column);
                    if (visible > 0) {
                        load_biases<N>(call, values, queries[r], column, bias);
#pragma unroll
                        for (int k = 0; k < N; k++) x[k] = add_(mul_(x[k], scale), bias[k]);
                    }
#pragma unroll
                    for (int k = 0; k < N; k++)
                        if (k >= visible) set_hidden(x[k]);
                } else {
#pragma unroll
                    for (int k = 0; k < N; k++) {
                        const i64 key = key_of(call, b, column + k);
                        if (is_hidden(call, queries[r], key)) set_hidden(x[k]);
                        else x[k] = add_(mul_(x[k], scale), bias_of<Real>(call, values, slope, queries[r], key, column + k));
                    }
                }
                words[r] = E::pack(x);
            }
#pragma unroll
            for (int r = 0; r < ROWS; r++)
                if (first + r < call.rows) *global<Word>(to + (first + r) * call.out_row_stride) = words[r];
        }
    }
}

// Two blocks a multiprocessor: for three, ptxas would spill two registers on sm_120.
#define KERNEL(E, VARIANT, ELEMENT)                       \
    extern "C" __global__ void __launch_bounds__(128, 2)  \
        add_toeplitz_##E##_##VARIANT(const __grid_constant__ AddToeplitz call) { add<ELEMENT>(call); }
#define ENTRIES(E) KERNEL(E, vec16, E) KERNEL(E, columns, One<E>)

ENTRIES(f32) ENTRIES(f64) ENTRIES(f16) ENTRIES(bf16)
