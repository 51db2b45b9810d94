// Rows gathered from tables and summed: what `embed.cu` and `add_table.cu` have in common; the CUDA twin of gather_sum.py.
//
//     out[b, t] = ((table[ids[b, t]] - zero) * row_scale) * scale + types[type_ids[b, t]] + (amplitude*PE(position) or learned[position])
//
//     out: (B, T, H, D), byte strides of any sign, f16 | bf16 | f32 | f64, aligned to the element
//     ids, type_ids: (B, T, H) i64, byte strides; the table, types and learned: rows of contiguous elements, byte strides from row to row
//     row_scales, zero_points: (V,) f64, of i8 and u8 tables
//     positions, mask and the functions of PE as in sinusoidal_rows.cuh
//
// Compiled for each combination of FIRST, SECOND, LEARNED and OUT, which are element types (any for an array that the call does not have),
// and of HAS_SECOND, ADDS_LEARNED, ADDS_SINUSOIDAL and IS_EMBEDDING, which are 0 or 1; REAL is double if any array is f64, else float.
// Everything is computed in REAL, one operation after the other, and rounded once at the store. A row whose id, or without `clips` whose
// position, is outside its table becomes NaN; nothing outside a table is read.
//
// Grid: x over the pairs of columns of a row, y over groups of eight rows, z over sequences. `vec16` kernels write 16 bytes at a time.
// Bytes moved per element: one read of each table's row, one write; an id for each row and thread, from the caches.

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

// Round to odd: an inexact result gets an odd last bit, so that rounding it once more, to 16 bits, equals rounding once.
DEVICE float rounded_to_odd(double value) {
    const float near = __double2float_rn(value);
    const double back = (double)near;
    const u32 bits = bits_of(near);
    if (back == value || value != value || (bits & 0x7fffffffu) >= 0x7f800000u) return near;
    const bool away = (bits_of(value) & 0x7fffffffffffffffULL) < (bits_of(back) & 0x7fffffffffffffffULL);
    return float_of((away ? bits - 1 : bits) | 1u);
}

template <class E> DEVICE typename E::storage stored(float value) { return E::store(value); }
template <class E> DEVICE typename E::storage stored(double value) { return E::store(rounded_to_odd(value)); }
template <> DEVICE u32 stored<f32>(double value) { return bits_of(__double2float_rn(value)); }
template <> DEVICE u64 stored<f64>(double value) { return bits_of(value); }

template <class E> DEVICE Real loaded(i64 address) { return (Real)E::load(*(const typename E::storage*)address); }

// N elements, in as few accesses as their alignment to their size together, up to 16 bytes, allows.
template <class E, int N>
DEVICE void load_elements(i64 address, Real* values) {
    typedef typename E::storage Storage;
    enum { BYTES = N * (int)sizeof(Storage) };
    Storage parts[N];
    if constexpr (BYTES % 16 == 0) {
#pragma unroll
        for (int i = 0; i < BYTES / 16; i++) {
            const uint4 four = *(const uint4*)(address + 16 * i);
            const u32 word[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
            for (int j = 0; j < 16 / (int)sizeof(Storage); j++) {
                const int k = j * (int)sizeof(Storage) / 4;
                const u64 both = sizeof(Storage) == 8 ? (u64)word[k + (sizeof(Storage) == 8)] << 32 | word[k] : word[k];
                parts[i * (16 / (int)sizeof(Storage)) + j] = (Storage)(both >> (j * 8 * (int)sizeof(Storage) % 32));
            }
        }
    } else if constexpr (BYTES % 4 == 0) {
#pragma unroll
        for (int i = 0; i < BYTES / 4; i++) {
            const u32 word = ((const u32*)address)[i];
#pragma unroll
            for (int j = 0; j < 4 / (int)sizeof(Storage); j++)
                parts[i * (4 / (int)sizeof(Storage)) + j] = (Storage)(word >> (j * 8 * (int)sizeof(Storage)));
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) parts[i] = ((const Storage*)address)[i];
    }
#pragma unroll
    for (int i = 0; i < N; i++) values[i] = (Real)E::load(parts[i]);
}

template <class E, int N>
DEVICE void store_elements(i64 address, const Real* values) {
    typedef typename E::storage Storage;
    u32 word[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < N; i++) {
        const u64 bits = stored<E>(values[i]);
        const int k = i * (int)sizeof(Storage) / 4;
        if (sizeof(Storage) == 8) {
            word[k] = (u32)bits;
            word[k + 1] = (u32)(bits >> 32);
        } else {
            word[k] |= (u32)bits << (i * 8 * (int)sizeof(Storage) % 32);
        }
    }
    *(uint4*)address = make_uint4(word[0], word[1], word[2], word[3]);
}

// ---- rows -------------------------------------------------------------------------------------------------------------------

// The addresses of the rows of one sum, and its factors.
struct Sources {
    i64 first, second, learned, target;
    Real zero, row_scale, scale;
    bool kept;

    DEVICE Sources(const GatherSum& call, i64 b, i64 t, i64 h) {
            target = call.out + b * call.out_batch_stride + t * call.out_row_stride + h * call.out_head_stride;
        kept = is_kept(call, b, t);
        second = learned = 0;
        zero = 0;
        row_scale = 1;
        scale = (Real)call.input_scale;
        bool valid = true;
        i64 id = 0;
        if (IS_EMBEDDING) {
            id = *(const i64*)(call.ids + b * call.ids_batch_stride + t * call.ids_row_stride + h * call.ids_head_stride);
            valid = id >= 0 && id < call.table_rows;
            id = valid ? id : 0;
            first = call.x + id * call.x_row_stride;
        } else {
            first = call.x + b * call.x_batch_stride + t * call.x_row_stride + h * call.x_head_stride;
        }
        if (HAS_SECOND) {
            i64 kind = *(const i64*)(call.type_ids + b * call.type_ids_batch_stride + t * call.type_ids_row_stride +
                                     h * call.type_ids_head_stride);
            const bool inside = kind >= 0 && kind < call.type_rows;
            valid = valid && inside;
            second = call.types + (inside ? kind : 0) * call.types_row_stride;
        }
        if (ADDS_LEARNED) {
            const i64 position = position_of(call, b, t, h);
            i64 row = position >> 32;
            if (call.clips && position != NOT_A_POSITION) row = row < 0 ? 0 : row >= call.learned_rows ? call.learned_rows - 1 : row;
            const bool inside = row >= 0 && row < call.learned_rows;
            valid = valid && inside;
            learned = call.learned + (inside ? row : 0) * call.learned_row_stride;
        }
        if (call.row_scales != 0) {
            row_scale = (Real)((const double*)call.row_scales)[id];
            zero = (Real)((const double*)call.zero_points)[id];
        }
        if (!valid) set_nan(scale);
    }
};

template <class E> struct is_integer { enum { value = 0 }; };
template <> struct is_integer<int8> { enum { value = 1 }; };
template <> struct is_integer<uint8> { enum { value = 1 }; };

DEVICE Real scaled(Real value, const Sources& at) {
    if (is_integer<FIRST>::value) value = mul_(add_(value, -at.zero), at.row_scale);
    return mul_(value, at.scale);
}

// Sum whole vectors; `Layout` says where a thread's pairs of columns are in a row, without PE as if interleaved.
template <class Layout>
DEVICE void sum_vectors(const GatherSum& call) {
    enum { V = Layout::V, P = Layout::P, N = OUT::N };
    const i64 unit = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (unit * P >= call.width / 2) return;
    const i64 groups = (call.rows - first_row(call, 0) + ANCHOR_ROWS - 1) / ANCHOR_ROWS;
    Frequencies<Real, P> frequencies;
    if (ADDS_SINUSOIDAL) frequencies.load(call, unit * P);
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
                for (i64 h = 0; h < call.heads; h++) {
                    if (ADDS_SINUSOIDAL && (!ready || varies(call))) {
                        ready = true;
                        Real u[P], v[P];
                        frequencies.row(call, position_of(call, b, t, h), unit * P, u, v);
                        Layout::order(u, v, pe);
                    }
                    const Sources at(call, b, t, h);
                    if (!at.kept && !IS_EMBEDDING && call.x == call.out) continue;
#pragma unroll
                    for (int k = 0; k < V; k++) {
                        const i64 column = Layout::offset(call, unit, k) / (i64)sizeof(OUT::storage);
                        Real value[N], more[N];
#pragma unroll
                        for (int i = 0; i < N; i++) value[i] = more[i] = 0;
                        if (at.kept || !IS_EMBEDDING) load_elements<FIRST, N>(at.first + column * (i64)sizeof(FIRST::storage), value);
                        if (at.kept) {
#pragma unroll
                            for (int i = 0; i < N; i++) value[i] = scaled(value[i], at);
                            if (HAS_SECOND) {
                                load_elements<SECOND, N>(at.second + column * (i64)sizeof(SECOND::storage), more);
#pragma unroll
                                for (int i = 0; i < N; i++) value[i] = add_(value[i], more[i]);
                            }
                            if (ADDS_LEARNED) load_elements<LEARNED, N>(at.learned + column * (i64)sizeof(LEARNED::storage), more);
#pragma unroll
                            for (int i = 0; i < N; i++) {
                                if (ADDS_LEARNED) value[i] = add_(value[i], more[i]);
                                if (ADDS_SINUSOIDAL) value[i] = add_(value[i], pe[k][i]);
                            }
                        }
                        store_elements<OUT, N>(at.target + column * (i64)sizeof(OUT::storage), value);
                    }
                }
            }
        }
    }
}

// One pair of columns, or the column without a partner; any strides.
DEVICE void sum_columns(const GatherSum& call) {
    const i64 f = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    const i64 pairs = call.width / 2;
    if (f >= (call.width + 1) / 2) return;
    const bool tail = f == pairs;
    const bool tail_is_first = (call.tail_is_cosine != 0) == (call.cosine_first != 0);
    const i64 step = call.interleaved || !ADDS_SINUSOIDAL ? 2 : 1;
    const i64 last = ADDS_SINUSOIDAL ? call.tail_column : call.width - 1;
    const i64 columns[2] = {tail ? last : f * step, tail ? last : f * step + (step == 2 ? 1 : call.second_half)};
    const int count = tail ? 1 : 2;
    const i64 groups = (call.rows - first_row(call, 0) + ANCHOR_ROWS - 1) / ANCHOR_ROWS;
    Frequencies<Real, 1> frequencies;
    if (ADDS_SINUSOIDAL) frequencies.load(call, f);
    for (i64 group = (i64)blockIdx.y * blockDim.y + threadIdx.y; group < groups; group += (i64)gridDim.y * blockDim.y) {
#pragma unroll 1
        for (int part = 0; part < ANCHOR_ROWS; part++) {
            const i64 t = first_row(call, group) + part;
            if (t < 0 || t >= call.rows) continue;
            Real pe[2] = {0, 0};
            bool ready = false;
            for (i64 b = blockIdx.z; b < call.batch; b += gridDim.z) {
                for (i64 h = 0; h < call.heads; h++) {
                    if (ADDS_SINUSOIDAL && (!ready || varies(call))) {
                        ready = true;
                        Real u, v;
                        frequencies.row(call, position_of(call, b, t, h), f, &u, &v);
                        pe[0] = tail && !tail_is_first ? v : u;
                        pe[1] = v;
                    }
                    const Sources at(call, b, t, h);
                    if (!at.kept && !IS_EMBEDDING && call.x == call.out) continue;
#pragma unroll
                    for (int k = 0; k < 2; k++) {
                        if (k >= count) continue;
                        OUT::storage* const target = (OUT::storage*)(at.target + columns[k] * call.out_column_stride);
                        if (!at.kept) {
                            *target = IS_EMBEDDING ? (OUT::storage)0 : *(const OUT::storage*)(at.first + columns[k] * call.x_column_stride);
                            continue;
                        }
                        Real value = scaled(loaded<FIRST>(at.first + columns[k] * call.x_column_stride), at);
                        if (HAS_SECOND) value = add_(value, loaded<SECOND>(at.second + columns[k] * (i64)sizeof(SECOND::storage)));
                        if (ADDS_LEARNED) value = add_(value, loaded<LEARNED>(at.learned + columns[k] * (i64)sizeof(LEARNED::storage)));
                        if (ADDS_SINUSOIDAL) value = add_(value, pe[k]);
                        *target = stored<OUT>(value);
                    }
                }
            }
        }
    }
}

#define KERNELS(NAME)                                                                             \
    extern "C" __global__ void __launch_bounds__(128, 3)                                          \
        NAME##_vec16_interleaved(const __grid_constant__ GatherSum call) { sum_vectors<Pairwise>(call); } \
    extern "C" __global__ void __launch_bounds__(128, 3)                                          \
        NAME##_vec16_concatenated(const __grid_constant__ GatherSum call) { sum_vectors<InBlocks>(call); } \
    extern "C" __global__ void __launch_bounds__(128, 3)                                          \
        NAME##_columns(const __grid_constant__ GatherSum call) { sum_columns(call); }

// The layouts of sinusoidal_rows.cuh, in Real.
struct Pairwise : Interleaved<OUT> {
    static DEVICE void order(const Real* u, const Real* v, Real (*pe)[OUT::N]) {
#pragma unroll
        for (int i = 0; i < Interleaved<OUT>::P; i++) {
            pe[0][2 * i] = u[i];
            pe[0][2 * i + 1] = v[i];
        }
    }
};
struct InBlocks : Concatenated<OUT> {
    static DEVICE void order(const Real* u, const Real* v, Real (*pe)[OUT::N]) {
#pragma unroll
        for (int i = 0; i < Concatenated<OUT>::P; i++) {
            pe[0][i] = u[i];
            pe[1][i] = v[i];
        }
    }
};
