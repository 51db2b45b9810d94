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
    return whole_position_at(call.queries + b * call.queries_batch_stride + i * call.queries_row_stride, call.start, i);
}

// The positions of N keys from j on. Every i32 is one; other kinds are asked for once, not for each key.
template <int N>
DEVICE void load_keys(const AddToeplitz& call, i64 b, i64 j, i64* keys) {
    const i64 address = call.keys + b * call.keys_batch_stride + j * call.keys_column_stride;
    if (call.keys == 0) {
#pragma unroll
        for (int k = 0; k < N; k++) keys[k] = (j + k) << 32;
    } else if (call.keys_kind == I32) {
#pragma unroll
        for (int k = 0; k < N; k++) keys[k] = (i64)((u64)*global<const i32>(address + k * call.keys_column_stride) << 32);
    } else if (call.keys_kind == UNITS) {
#pragma unroll
        for (int k = 0; k < N; k++) keys[k] = *global<const i64>(address + k * call.keys_column_stride);
    } else {
        const u64 below = call.keys_kind == U64 ? 0 : 0x80000000ULL;  // how many are negative
#pragma unroll
        for (int k = 0; k < N; k++) {
            const u64 key = *global<const u64>(address + k * call.keys_column_stride);
            keys[k] = key + below < 0x80000000ULL + below ? (i64)(key << 32) : NOT_A_POSITION;
        }
    }
}

// The last position of a key that a query sees.
DEVICE i64 last_visible(const AddToeplitz& call, i64 query) {
    return call.causal != 0 && query != NOT_A_POSITION ? query : 0x7fffffffffffffffLL;
}

// The number, among a row's values, of that of a distance.
DEVICE i64 index_of(const AddToeplitz& call, i64 distance) { return limited(distance, call.low, call.high) - call.low; }

// What a thread owns in a sequence and head: ROWS rows of N columns, and where they are.
template <class E>
struct Tile {
    typedef typename E::real Real;
    typedef typename E::word Word;
    enum { N = E::N, DIAGONALS = ROWS + N - 1 };
    const AddToeplitz& call;
    i64 column, first, in, to, values;
    int rows;

    DEVICE Tile(const AddToeplitz& call, i64 b, i64 h, i64 column, i64 first) : call(call), column(column), first(first) {
        in = call.x + b * call.x_batch_stride + h * call.x_head_stride + first * call.x_row_stride + column * call.x_column_stride;
        to = call.out + b * call.out_batch_stride + h * call.out_head_stride + first * call.out_row_stride +
             column * call.out_column_stride;
        values = call.values + b * call.values_batch_stride + h * call.values_head_stride + first * call.values_row_stride;
        rows = (int)limited(call.rows - first, 0, ROWS);
    }

    // Where row i is at start + i and column j at j, diagonals have a bias each, and hidden ones are the last.
    DEVICE void add_diagonals(Real scale) const {
        const i64 lowest = column - (call.start >> 32) - first - (ROWS - 1);
        const int visible = call.causal != 0 ? (int)limited(1 - lowest, 0, DIAGONALS) : DIAGONALS;
        Word words[ROWS];
        Real bias[DIAGONALS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            words[r] = Word();
            if (r < rows && visible >= ROWS - r) words[r] = *global<const Word>(in + r * call.x_row_stride);
        }
        if (lowest >= call.low && lowest + (DIAGONALS - 1) <= call.high) {
#pragma unroll
            for (int i = 0; i < DIAGONALS; i++) bias[i] = global<const Real>(values)[lowest - call.low + i];
        } else {
#pragma unroll
            for (int i = 0; i < DIAGONALS; i++) bias[i] = global<const Real>(values)[index_of(call, lowest + i)];
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            Real x[N];
            E::unpack(words[r], x);
#pragma unroll
            for (int k = 0; k < N; k++) x[k] = add_(mul_(x[k], scale), bias[k + ROWS - 1 - r]);
            if (visible < DIAGONALS) {
#pragma unroll
                for (int k = 0; k < N; k++)
                    if (k + ROWS - 1 - r >= visible) set_hidden(x[k]);
            }
            words[r] = E::pack(x);
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            if (r < rows) *global<Word>(to + r * call.out_row_stride) = words[r];
    }

    // Where rows and columns are at any positions, or rows have values of their own; LINEAR: there are slopes instead of values. All four
    // rows at a time would need more registers than the other way does.
    template <bool LINEAR>
    DEVICE void add_each(Real scale, double slope, i64 b) const {
        enum { PART = ROWS / 2 };
        i64 keys[N];
        load_keys<N>(call, b, column, keys);
        i64 first_key = keys[0];
#pragma unroll
        for (int k = 1; k < N; k++) first_key = keys[k] < first_key ? keys[k] : first_key;
#pragma unroll 1
        for (int part = 0; part < rows; part += PART) {
            i64 queries[PART];
            Word words[PART];
#pragma unroll
            for (int r = 0; r < PART; r++) queries[r] = part + r < rows ? query_of(call, b, first + part + r) : NOT_A_POSITION;
#pragma unroll
            for (int r = 0; r < PART; r++) {
                words[r] = Word();
                if (part + r < rows && first_key <= last_visible(call, queries[r]))
                    words[r] = *global<const Word>(in + (part + r) * call.x_row_stride);
            }
#pragma unroll
            for (int r = 0; r < PART; r++) {
                if (part + r >= rows) continue;
                Real x[N];
                E::unpack(words[r], x);
#pragma unroll
                for (int k = 0; k < N; k++) {
                    const i64 distance = (keys[k] >> 32) - (queries[r] >> 32);
                    Real bias;
                    if (LINEAR) {
                        const i64 factor = call.symmetric != 0 && distance > 0 ? -distance : distance;
                        const double product = mul_(slope, __ll2double_rn(factor));
                        bias = (Real)add_(product, 0.0);  // no -0
                    } else {
                        const i64 row = values + (part + r) * call.values_row_stride;
                        bias = global<const Real>(row)[call.by_column != 0 ? column + k : index_of(call, distance)];
                    }
                    if (queries[r] == NOT_A_POSITION || keys[k] == NOT_A_POSITION) set_nan(bias);
                    x[k] = add_(mul_(x[k], scale), bias);
                    if (keys[k] > last_visible(call, queries[r])) set_hidden(x[k]);
                }
                words[r] = E::pack(x);
            }
#pragma unroll
            for (int r = 0; r < PART; r++)
                if (part + r < rows) *global<Word>(to + (part + r) * call.out_row_stride) = words[r];
        }
    }
};

template <class E>
DEVICE void add(const AddToeplitz& call) {
    const i64 column = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * E::N;
    if (column >= call.columns) return;
    const typename E::real scale = (typename E::real)call.input_scale;
    const bool in_order = call.keys == 0 && call.queries == 0 && call.slopes == 0 && call.by_column == 0;
    // The pairs of a sequence and a head, of which there may be more than blocks. Numbers of blocks are below 2^16.
    const u32 heads = (u32)limited(call.heads, 1, 1 << 16), below = blockIdx.z / heads, below_step = gridDim.z / heads;
    i64 b = below, h = blockIdx.z - below * heads;
    for (; b < call.batch; b += below_step, h += gridDim.z - below_step * heads) {
        if (h >= call.heads) {
            h -= call.heads;
            if (++b >= call.batch) break;
        }
        const double slope = call.slopes != 0 ? global<const double>(call.slopes)[h] : 0.0;
        for (i64 first = ((i64)blockIdx.y * blockDim.y + threadIdx.y) * ROWS; first < call.rows;
             first += (i64)gridDim.y * blockDim.y * ROWS) {
            const Tile<E> tile(call, b, h, column, first);
            if (in_order) tile.add_diagonals(scale);
            else if (call.slopes == 0) tile.template add_each<false>(scale, slope, b);
            else tile.template add_each<true>(scale, slope, b);
        }
    }
}

// Three blocks a multiprocessor: for four, ptxas would spill registers on sm_100 and sm_120.
#define KERNEL(E, VARIANT, ELEMENT)                       \
    extern "C" __global__ void __launch_bounds__(128, 3)  \
        add_toeplitz_##E##_##VARIANT(const __grid_constant__ AddToeplitz call) { add<ELEMENT>(call); }
#define ENTRIES(E) KERNEL(E, vec16, E) KERNEL(E, columns, One<E>)

ENTRIES(f32) ENTRIES(f64) ENTRIES(f16) ENTRIES(bf16)
