// Rows gathered from tables and summed: what `embed.cu` and `add_table.cu` have in common; the CUDA twin of gather_sum.py, which describes
// the arguments. Here the result is aligned to the element.
//
// Compiled for each combination of FIRST, SECOND, LEARNED and OUT, which are element types (any for an array that the call does not have;
// OUT may be e4m3 or e5m2, too), of IDS, TYPE_IDS, SCALES and ZEROS, which are types of numbers, and of HAS_SECOND, ADDS_LEARNED,
// ADDS_SINUSOIDAL and IS_EMBEDDING, which are 0 or 1; REAL is double if FIRST, SECOND, LEARNED or OUT is f64, else float. MORE_ZERO is added
// to a zero point, and is all of it where there are no zero_points.
//
// Grid: x over the pairs of columns of a row, y over groups of eight rows, z over sequences. `vec16` kernels write 16 bytes at a time, 8 of
// float8. Bytes moved per element: one read of each table's row, one write; an id for each row and thread, from the caches.

#ifndef FIRST
#define FIRST f32
#define SECOND f32
#define LEARNED f32
#define OUT f32
#define REAL float
#define HAS_SECOND 0
#define ADDS_LEARNED (!IS_EMBEDDING)
#define ADDS_SINUSOIDAL 0
#define IDS int64
#define TYPE_IDS int64
#define SCALES f64
#define ZEROS f64
#define MORE_ZERO 0
#endif

#include "sinusoidal_rows.cuh"
#include "GatherSum.abi"

typedef REAL Real;

// ---- element types, computed with as Real -----------------------------------------------------------------------------------

// int8 is read as uint8 with 128 more; the zero point subtracts it again.
struct int8 {
    typedef u8 storage;
    static DEVICE float load(u8 bits) { return __int2float_rn((int)(bits ^ 0x80)); }
};
struct uint8 {
    typedef u8 storage;
    static DEVICE float load(u8 bits) { return __int2float_rn((int)bits); }
};

struct int32 {
    typedef i32 storage;
    static DEVICE double load(i32 value) { return (double)value; }
    static DEVICE i64 id(i32 value) { return value; }
};
struct int64 {
    typedef i64 storage;
    static DEVICE double load(i64 value) { return (double)value; }
    static DEVICE i64 id(i64 value) { return value; }
};

// N elements, by `load_all`.
template <class E, int N>
DEVICE void load_elements(i64 address, Real* values) {
    typename E::storage elements[N];
    load_all<N>(address, elements);
#pragma unroll
    for (int i = 0; i < N; i++) values[i] = (Real)E::load(elements[i]);
}

// ---- rows -------------------------------------------------------------------------------------------------------------------

// The addresses of the rows of one sum, and its factors.
struct Sources {
    i64 first, second, learned, target;
    Real zero, row_scale, scale;
    bool kept;

    DEVICE Sources(const GatherSum& call, i64 b, i64 t, i64 h, Sequence& sequence, Counter& counter) {
        target = call.out + b * call.out_batch_stride + t * call.out_row_stride + h * call.out_head_stride;
        kept = mask_at(call, b, t) != 0;
        second = learned = 0;
        zero = 0;
        row_scale = 1;
        scale = (Real)call.input_scale;
        bool valid = true;
        i64 id = 0;
        if (IS_EMBEDDING) {
            const i64 at = call.ids + b * call.ids_batch_stride + t * call.ids_row_stride + h * call.ids_head_stride;
            id = IDS::id(*global<const IDS::storage>(at));
            valid = id >= 0 && id < call.table_rows;
            id = valid ? id : 0;
            first = call.x + id * call.x_row_stride;
        } else {
            first = call.x + b * call.x_batch_stride + t * call.x_row_stride + h * call.x_head_stride;
        }
        if (HAS_SECOND) {
            const i64 at = call.type_ids + b * call.type_ids_batch_stride + t * call.type_ids_row_stride +
                           h * call.type_ids_head_stride;
            const i64 kind = TYPE_IDS::id(*global<const TYPE_IDS::storage>(at));
            const bool inside = kind >= 0 && kind < call.type_rows;
            valid = valid && inside;
            second = call.types + (inside ? kind : 0) * call.types_row_stride;
        }
        if (ADDS_LEARNED) {
            const i64 position = position_of(call, b, t, h, sequence, counter);
            i64 row = position >> 32;
            if (call.clips && position != NOT_A_POSITION) row = row < 0 ? 0 : row >= call.learned_rows ? call.learned_rows - 1 : row;
            const bool inside = row >= 0 && row < call.learned_rows;
            valid = valid && inside;
            learned = call.learned + (inside ? row : 0) * call.learned_row_stride;
        }
        if (call.row_scales != 0) {
            row_scale = (Real)SCALES::load(global<const SCALES::storage>(call.row_scales)[id]);
            zero = MORE_ZERO;
            if (call.zero_points != 0)
                zero = (Real)add_((double)ZEROS::load(global<const ZEROS::storage>(call.zero_points)[id]), (double)MORE_ZERO);
        }
        if (!valid) set_nan(scale);
    }
};

DEVICE Real scaled(Real value, const Sources& at) {
    if (sizeof(FIRST::storage) == 1) value = mul_(add_(value, -at.zero), at.row_scale);
    return mul_(value, at.scale);
}

// Sum the columns that a thread owns of the rows of its groups; without PE they are owned as if interleaved.
template <class Layout>
DEVICE void sum(const GatherSum& call) {
    typedef typename Layout::Element::word Word;
    enum { V = Layout::V, P = Layout::P, N = Layout::N };
    Counter counter(call, blockIdx.z, first_row(call, (i64)blockIdx.y * blockDim.y));
    const i64 unit = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (unit * P >= (call.width + 1) / 2) return;
    const Layout at(call, unit);
    const i64 groups = (call.rows - first_row(call, 0) + ANCHOR_ROWS - 1) / ANCHOR_ROWS;
    Frequencies<Real, P> frequencies;
    if (ADDS_SINUSOIDAL) frequencies.load(call, unit * P);
    Sequence sequence;
    for (i64 group = (i64)blockIdx.y * blockDim.y + threadIdx.y; group < groups; group += (i64)gridDim.y * blockDim.y) {
#pragma unroll 1
        for (int part = 0; part < ANCHOR_ROWS; part++) {
            const i64 t = first_row(call, group) + part;
            if (t < 0 || t >= call.rows) continue;
            Real pe[V][N];
#pragma unroll
            for (int k = 0; k < V * N; k++) pe[k / N][k % N] = 0;
            bool ready = false;
            for (i64 b = blockIdx.z; b < call.batch; b += gridDim.z) {
                counter.reach(call, b, t);
                for (i64 h = 0; h < call.heads; h++) {
                    if (ADDS_SINUSOIDAL && (!ready || varies(call))) {
                        ready = true;
                        Real u[P], v[P];
                        frequencies.row(call, position_of(call, b, t, h, sequence, counter), unit * P, u, v);
                        at.order(u, v, pe);
                    }
                    const Sources row(call, b, t, h, sequence, counter);
                    if (!row.kept && !IS_EMBEDDING && call.x == call.out) continue;
#pragma unroll
                    for (int k = 0; k < V; k++) {
                        if (k > 0 && at.tail) continue;
                        const i64 column = at.columns[k];
                        const i64 from = row.first + column * step<FIRST::storage, N>(call.x_column_stride);
                        Word* const target = global<Word>(row.target + column * step<OUT::storage, N>(call.out_column_stride));
                        if (!row.kept) {
                            *target = IS_EMBEDDING ? Word() : *global<const Word>(from);
                            continue;
                        }
                        Real value[N], more[N];
                        load_elements<FIRST, N>(from, value);
#pragma unroll
                        for (int i = 0; i < N; i++) value[i] = scaled(value[i], row);
                        if (HAS_SECOND) {
                            load_elements<SECOND, N>(row.second + column * (i64)sizeof(SECOND::storage), more);
#pragma unroll
                            for (int i = 0; i < N; i++) value[i] = add_(value[i], more[i]);
                        }
                        if (ADDS_LEARNED) {
                            load_elements<LEARNED, N>(row.learned + column * (i64)sizeof(LEARNED::storage), more);
#pragma unroll
                            for (int i = 0; i < N; i++) value[i] = add_(value[i], more[i]);
                        }
                        OUT::real result[N];
#pragma unroll
                        for (int i = 0; i < N; i++) {
                            Real total = ADDS_SINUSOIDAL ? add_(value[i], pe[k][i]) : value[i];
                            if (sizeof(OUT::storage) == 1) total = mul_(total, (Real)call.out_factor);
                            result[i] = narrowed<OUT>(total);
                        }
                        *target = Layout::Element::pack(result);
                    }
                }
            }
        }
    }
}

#define KERNEL(NAME, VARIANT, LAYOUT)                             \
    extern "C" __global__ void __launch_bounds__(128, 3)          \
        NAME##_##VARIANT(const __grid_constant__ GatherSum call) { sum<LAYOUT<OUT>>(call); }
#define KERNELS(NAME)                                \
    KERNEL(NAME, vec16_interleaved, Interleaved)     \
    KERNEL(NAME, vec16_concatenated, Concatenated)   \
    KERNEL(NAME, columns, OnePair)
