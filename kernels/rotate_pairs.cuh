// Pairs of channels of q and k rotated by the angles of their rows: what `rotate.cu` and `rotate_table.cu` have in common; the CUDA twin of
// rotate_pairs.py.
//
// (u, v) -> (u c - v s, v c + u s), back where `inverse`  (Su et al. 2021, equation 34)
//
//     q, k: (B, T, H, D), byte strides of any sign, f16 | bf16 | f32 | f64, aligned to the element; their out: themselves, or another array;
//         0 for none
//     positions: (A, B, T) i64 in units of 2^-32, byte strides, or 0: row t is at start + t
//     mask: (B, T) bytes, byte strides, or 0; a row whose byte is 0 is left as it is
//
// Grid: x over the pairs of a row (with, in the kernels named `pairs` and out of place, the channels that are not rotated) times groups of
// heads, as many as fit; y over rows, z over sequences. A thread owns its pairs in every head of its group: it makes their cosines and
// sines once. `vec16` kernels take 16 bytes of each of two halves, or 16 bytes of adjacent pairs, at a time.
// Bytes moved per element: one read and one write of q and k.

#include "arithmetic.cuh"
#include "Rotated.abi"
#include "RotatePairs.abi"

// The heads of q or k at one row, of which a thread takes every `step`th.
struct Heads {
    i64 from, to, heads, stride, stride_out, column, column_out;

    DEVICE Heads(const Rotated& array, i64 b, i64 t) {
        from = array.x + b * array.batch_stride + t * array.row_stride;
        to = array.out + b * array.out_batch_stride + t * array.out_row_stride;
        heads = array.heads;
        stride = array.head_stride;
        stride_out = array.out_head_stride;
        column = array.column_stride;
        column_out = array.out_column_stride;
    }
};

template <class Real>
DEVICE void rotate(Real& u, Real& v, Real cosine, Real sine) {
    const Real first = fma_(u, cosine, -mul_(v, sine));
    v = fma_(v, cosine, mul_(u, sine));
    u = first;
}

// One pair, or one channel that is not rotated, a thread; any strides.
template <class E>
struct OnePair {
    typedef typename E::real Real;
    typedef typename E::storage Storage;
    enum { N = 1 };

    static DEVICE void run(const RotatePairs& call, const Heads& at, i64 unit, bool kept, i64 group, i64 step, const Real* cosine,
                           const Real* sine) {
        const bool rotates = unit < call.pairs;
        const i64 other = unit - call.pairs;
        const i64 one = rotates ? call.first_channel + (call.interleaved ? 2 * unit : unit)
                              : other < call.first_channel ? other : other + 2 * call.pairs;
        const i64 two = rotates ? one + (call.interleaved ? 1 : call.pairs) : one;
        for (i64 h = group; h < at.heads; h += step) {
            const i64 from = at.from + h * at.stride, to = at.to + h * at.stride_out;
            const Storage a = *(const Storage*)(from + one * at.column), b = *(const Storage*)(from + two * at.column);
            Real u = E::load(a), v = E::load(b);
            rotate(u, v, cosine[0], sine[0]);
            *(Storage*)(to + one * at.column_out) = kept && rotates ? E::store(u) : a;
            if (rotates) *(Storage*)(to + two * at.column_out) = kept ? E::store(v) : b;
        }
    }
};

// 16 bytes of u and of v, which lie `pairs` channels apart.
template <class E>
struct TwoVectors {
    typedef typename E::real Real;
    enum { N = E::N };

    static DEVICE void run(const RotatePairs& call, const Heads& at, i64 unit, bool kept, i64 group, i64 step, const Real* cosine,
                           const Real* sine) {
        const i64 one = call.first_channel * at.column + unit * 16, two = one + call.pairs * at.column;
        for (i64 h = group; h < at.heads; h += step) {
            const i64 from = at.from + h * at.stride, to = at.to + h * at.stride_out;
            uint4 a = *(const uint4*)(from + one), b = *(const uint4*)(from + two);
            if (kept) {
                Real u[N], v[N];
                E::unpack(a, u);
                E::unpack(b, v);
#pragma unroll
                for (int i = 0; i < N; i++) rotate(u[i], v[i], cosine[i], sine[i]);
                a = E::pack(u);
                b = E::pack(v);
            }
            *(uint4*)(to + one) = a;
            *(uint4*)(to + two) = b;
        }
    }
};

// 16 bytes of pairs that lie side by side.
template <class E>
struct OneVector {
    typedef typename E::real Real;
    enum { N = E::N / 2 };

    static DEVICE void run(const RotatePairs& call, const Heads& at, i64 unit, bool kept, i64 group, i64 step, const Real* cosine,
                           const Real* sine) {
        const i64 column = call.first_channel * at.column + unit * 16;
        for (i64 h = group; h < at.heads; h += step) {
            uint4 both = *(const uint4*)(at.from + h * at.stride + column);
            if (kept) {
                Real x[2 * N];
                E::unpack(both, x);
#pragma unroll
                for (int i = 0; i < N; i++) rotate(x[2 * i], x[2 * i + 1], cosine[i], sine[i]);
                both = E::pack(x);
            }
            *(uint4*)(at.to + h * at.stride_out + column) = both;
        }
    }
};

// Angles: `Angles(call, f)` knows what pair f needs, `at(b, t, cosine, sine)` makes its cosine and sine at a row.
template <class E, class Unit, class Angles, class Arguments>
DEVICE void rotate_pairs(const Arguments& call, i64 units) {
    typedef typename E::real Real;
    enum { N = Unit::N };
    const i64 columns = (units + blockDim.x - 1) / blockDim.x;
    const i64 group = blockIdx.x / columns, groups = gridDim.x / columns;
    const i64 unit = (blockIdx.x - group * columns) * blockDim.x + threadIdx.x;
    if (unit >= units) return;
    const bool rotates = unit * N < call.pairs;
    for (i64 t = (i64)blockIdx.y * blockDim.y + threadIdx.y; t < call.rows; t += (i64)gridDim.y * blockDim.y) {
        Real cosine[N], sine[N];
        bool ready = false;
        for (i64 b = blockIdx.z; b < call.batch; b += gridDim.z) {
            if (!ready || call.positions_batch_stride != 0) {
                ready = true;
#pragma unroll
                for (int i = 0; i < N; i++) {
                    if (rotates) Angles::at(call, unit * N + i, b, t, cosine[i], sine[i]);
                    else cosine[i] = sine[i] = 0;
                    if (call.inverse) sine[i] = -sine[i];
                }
            }
            const bool kept = is_kept(call, b, t);
#pragma unroll 1
            for (int which = 0; which < 2; which++) {
                const Rotated& array = which ? call.k : call.q;
                if (array.out != 0 && ((kept && rotates) || array.x != array.out))
                    Unit::run(call, Heads(array, b, t), unit, kept, group, groups, cosine, sine);
            }
        }
    }
}

// Three kernels for an element type. Seven blocks a multiprocessor leave a thread 72 registers, with which none spills on any architecture;
// without a number ptxas spills two on sm_100. `pairs` has a thread for every channel that is not rotated too.
#define KERNEL(NAME, E, VARIANT, UNIT, UNITS)                                                     \
    extern "C" __global__ void __launch_bounds__(128, 7)                                          \
        NAME##_##E##_##VARIANT(const __grid_constant__ Arguments call) {                          \
        rotate_pairs<E, UNIT<E>, Angles<E> >(call, UNITS);                                        \
    }
#define KERNELS(NAME, E)                                                                          \
    KERNEL(NAME, E, pairs, OnePair, call.head_dim - call.pairs)                             \
    KERNEL(NAME, E, vec16_half, TwoVectors, call.pairs / E::N)                                 \
    KERNEL(NAME, E, vec16_interleaved, OneVector, 2 * call.pairs / E::N)
#define ALL_KERNELS(NAME) KERNELS(NAME, f32) KERNELS(NAME, f64) KERNELS(NAME, f16) KERNELS(NAME, bf16)
