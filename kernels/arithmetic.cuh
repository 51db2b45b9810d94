// Phase, sine and cosine, 16-bit conversion and fused multiply-add for CUDA: the twin of arithmetic.py, bit for bit. No fast intrinsics, no
// libdevice trigonometry, no flush to zero; no header is needed.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef int i32;
typedef unsigned long long u64;
typedef long long i64;

#define DEVICE __device__ __forceinline__

// A row's position is i64 in units of 2^-32. This value stands for "not a position" and makes a NaN row; no integer and no
// float64 in [-2^31, 2^31) converts to it.
#define NOT_A_POSITION (-0x7fffffffffffffffLL)

// ---- memory -----------------------------------------------------------------------------------------------------------------

// What lies at an address. All of it is global memory, and so are then the instructions that read and write it.
template <class T>
DEVICE T* global(i64 address) { return (T*)__cvta_global_to_generic((size_t)address); }

template <bool CONDITION, class A, class B> struct Either { typedef A type; };
template <class A, class B> struct Either<false, A, B> { typedef B type; };

// N neighbouring numbers, in as few accesses as their alignment to their size together, up to 16 bytes, allows.
template <int N, class T>
DEVICE void load_all(i64 address, T* values) {
    enum { BYTES = N * (int)sizeof(T) };
    typedef typename Either<BYTES == 2, u16, typename Either<BYTES % 4 == 0, u32, T>::type>::type Part;
    typedef typename Either<sizeof(T) == 8, ulonglong2, uint4>::type Most;
    typedef typename Either<BYTES % 16 == 0, Most, typename Either<BYTES == 8, u64, Part>::type>::type Word;
    union {
        Word words[BYTES / sizeof(Word)];
        T elements[N];
    };
#pragma unroll
    for (int i = 0; i < BYTES / (int)sizeof(Word); i++) words[i] = global<const Word>(address)[i];
#pragma unroll
    for (int i = 0; i < N; i++) values[i] = elements[i];
}

// ---- exact float steps ------------------------------------------------------------------------------------------------------

DEVICE float fma_(float x, float y, float z) { return __fmaf_rn(x, y, z); }
DEVICE double fma_(double x, double y, double z) { return __fma_rn(x, y, z); }
DEVICE float mul_(float x, float y) { return __fmul_rn(x, y); }
DEVICE double mul_(double x, double y) { return __dmul_rn(x, y); }
DEVICE float add_(float x, float y) { return __fadd_rn(x, y); }
DEVICE double add_(double x, double y) { return __dadd_rn(x, y); }
DEVICE u32 bits_of(float value) { return __float_as_uint(value); }
DEVICE u64 bits_of(double value) { return (u64)__double_as_longlong(value); }
DEVICE float float_of(u32 bits) { return __uint_as_float(bits); }
DEVICE double float_of(u64 bits) { return __longlong_as_double((i64)bits); }

// A signed number of units of 2^-32, or 2^-64.
DEVICE float fraction_of(u32 units) { return mul_(__int2float_rn((i32)units), 0x1.0p-32f); }
DEVICE double fraction_of(u64 units) { return mul_(__ll2double_rn((i64)units), 0x1.0p-64); }

// Horner's rule in fused steps; the constant coefficient comes first.
template <class Real>
DEVICE Real polynomial(Real, Real constant) { return constant; }
template <class Real, class... Reals>
DEVICE Real polynomial(Real z, Real constant, Reals... others) { return fma_(polynomial(z, others...), z, constant); }

// ---- phase, sine and cosine -------------------------------------------------------------------------------------------------

// Phase at a position: (position * frequency) mod one turn, in units of 2^-64 turn; the frequency is whole_turns +
// fraction_of_turn * 2^-64 turns a position. Of the product with the position's fraction only bits below 2^-64 turn are dropped.
DEVICE u64 phase(i64 position, u64 fraction_of_turn, u64 whole_turns) {
    const u64 whole = (u64)(position >> 32);
    const u64 part = (u64)position & 0xffffffffULL;
    const u64 high = fraction_of_turn >> 32;
    const u64 low = fraction_of_turn & 0xffffffffULL;
    return whole * fraction_of_turn + ((part * whole_turns) << 32) + part * high + ((part * low) >> 32);
}

// sin(2 pi r) and cos(2 pi r), |r| <= 1/8.
DEVICE void sincos_near_0(float r, float& sine, float& cosine) {
    const float z = mul_(r, r);
    const float q = polynomial(z, -0x1.a32b8ap-23f, -0x1.4abbbap+5f, 0x1.465e92p+6f, -0x1.2d9302p+6f);
    sine = fma_(r, 0x1.921fb6p+2f, mul_(q, r));
    cosine = polynomial(z, 1.0f, -0x1.3bd3ccp+4f, 0x1.03c1dep+6f, -0x1.55c664p+6f, 0x1.d9f7b8p+5f);
}

DEVICE void sincos_near_0(double r, double& sine, double& cosine) {
    const double z = mul_(r, r);
    const double q = polynomial(z, 0x1.026565a2ab64ap-52, -0x1.4abbce625be41p+5, 0x1.466bc67758700p+6, -0x1.32d2cce2d538ap+6,
                                0x1.50782fca3af0ap+5, -0x1.e30063a1b8bb9p+3, 0x1.e3eed62bb3a55p+1);
    sine = fma_(r, 0x1.921fb54442d18p+2, mul_(q, r));
    cosine = polynomial(z, 1.0, -0x1.3bd3cc9be45dep+4, 0x1.03c1f081b5ab0p+6, -0x1.55d3c7e3c95bcp+6, 0x1.e1f50683b4301p+5,
                        -0x1.a6d1ecb743441p+4, 0x1.f9cc6ad2607f8p+2, -0x1.b26fe92617f8cp+0);
}

// Sine and cosine of a phase, of which f32 takes the top 32 bits.
template <class Real>
DEVICE void sincos_of(u64 phase, Real& sine_out, Real& cosine_out) {
    typedef decltype(bits_of(Real())) Bits;
    const int bits = 8 * sizeof(Bits);
    const Bits eighth = (Bits)1 << (bits - 3), half = (Bits)1 << (bits - 1);
    const Bits shifted = (Bits)(phase >> (64 - bits)) + eighth;
    Real s, c;
    sincos_near_0(fraction_of((shifted & (2 * eighth - 1)) - eighth), s, c);
    const bool odd = (shifted & 2 * eighth) != 0;
    const Bits sine = bits_of(odd ? c : s), cosine = bits_of(odd ? s : c);
    sine_out = float_of(sine ^ (shifted & half));
    cosine_out = float_of(cosine ^ ((shifted + 2 * eighth) & half));
}

// ---- powers of two ----------------------------------------------------------------------------------------------------------

// Integer part and fraction (units of 2^-64) of distance * growth, rounded to the nearest integer and what is left. The distance, below
// 2^31, is in units of 2^-32; the growth, below 1, in units of 2^-64.
DEVICE void exponent(u64 distance, u64 growth, u64& integer, u64& fraction) {
    const u64 whole = distance >> 32, part = distance & 0xffffffffULL;
    const u64 high = growth >> 32, low = growth & 0xffffffffULL;
    const u64 rest = part * high + ((part * low) >> 32);
    fraction = whole * growth + rest;
    integer = ((whole * high + ((whole * low) >> 32)) >> 32) + (fraction < rest ? 1 : 0) + (fraction >> 63);
}

// 2^r, |r| <= 1/2.
DEVICE float exp2_near_0(float r) {
    return polynomial(r, 1.0f, 0x1.62e43p-1f, 0x1.ebfbdap-3f, 0x1.c6aed4p-5f, 0x1.3b2dbcp-7f, 0x1.5f456ap-10f, 0x1.41d314p-13f);
}

DEVICE double exp2_near_0(double r) {
    return polynomial(r, 1.0, 0x1.62e42fefa39efp-1, 0x1.ebfbdff82c5adp-3, 0x1.c6b08d7049fd1p-5, 0x1.3b2ab6fb9f412p-7,
                      0x1.5d87fe78cf231p-10, 0x1.43091310bf95dp-13, 0x1.ffcbfba7c5eb8p-17, 0x1.62bfc3c154df1p-20,
                      0x1.b5267873093f1p-24, 0x1.e620fc49ec411p-28, 0x1.e7aa32c48dcfcp-32);
}

// Two to the power of integer + fraction (the fraction as a signed number), or of its negative; 0 and inf beyond.
template <class Real>
DEVICE void exp2_of(u64 integer, u64 fraction, bool rises, Real& result) {
    typedef decltype(bits_of(Real())) Bits;
    const bool single = sizeof(Real) == 4;
    const Bits bias = single ? 127 : 1023;
    const Real r = fraction_of((Bits)(fraction >> (single ? 32 : 0)));
    const Bits up = integer < bias + 1 ? (Bits)integer : bias + 1, down = integer < bias ? (Bits)integer : bias;
    result = mul_(exp2_near_0(rises ? r : -r), float_of((rises ? up + bias : bias - down) << (single ? 23 : 52)));
}

DEVICE void set_nan(float& value) { value = float_of(0x7fc00000u); }
DEVICE void set_nan(double& value) { value = float_of(0x7ff8000000000000ULL); }

// ---- elements ---------------------------------------------------------------------------------------------------------------

// An element type: its storage, the type of its arithmetic, and a word of N elements, which are accessed at once, as reals.
struct f32 {
    typedef u32 storage;
    typedef float real;
    typedef uint4 word;
    enum { N = 4 };
    static DEVICE float load(u32 bits) { return float_of(bits); }
    static DEVICE u32 store(float value) { return bits_of(value); }
    static DEVICE void unpack(uint4 v, float* x) {
        x[0] = float_of(v.x); x[1] = float_of(v.y); x[2] = float_of(v.z); x[3] = float_of(v.w);
    }
    static DEVICE uint4 pack(const float* x) {
        return make_uint4(bits_of(x[0]), bits_of(x[1]), bits_of(x[2]), bits_of(x[3]));
    }
};

struct f64 {
    typedef u64 storage;
    typedef double real;
    typedef uint4 word;
    enum { N = 2 };
    static DEVICE double load(u64 bits) { return float_of(bits); }
    static DEVICE u64 store(double value) { return bits_of(value); }
    static DEVICE void unpack(uint4 v, double* x) {
        x[0] = float_of((u64)v.y << 32 | v.x);
        x[1] = float_of((u64)v.w << 32 | v.z);
    }
    static DEVICE uint4 pack(const double* x) {
        const u64 a = bits_of(x[0]), b = bits_of(x[1]);
        return make_uint4((u32)a, (u32)(a >> 32), (u32)b, (u32)(b >> 32));
    }
};

// What 16-bit elements have in common.
template <class E>
struct Pairs {
    typedef u16 storage;
    typedef float real;
    typedef uint4 word;
    enum { N = 8 };
    static DEVICE void unpack(uint4 v, float* x) {
        unpack_pair(v.x, x); unpack_pair(v.y, x + 2); unpack_pair(v.z, x + 4); unpack_pair(v.w, x + 6);
    }
    static DEVICE uint4 pack(const float* x) {
        return make_uint4(pack_pair(x[0], x[1]), pack_pair(x[2], x[3]), pack_pair(x[4], x[5]), pack_pair(x[6], x[7]));
    }
    static DEVICE u32 pack_pair(float low, float high) {
#if __CUDA_ARCH__ >= 800
        return E::convert_pair(low, high);
#else
        return (u32)E::store(low) | (u32)E::store(high) << 16;
#endif
    }
    static DEVICE void unpack_pair(u32 word, float* x) { x[0] = E::load((u16)word); x[1] = E::load((u16)(word >> 16)); }
};

struct f16 : Pairs<f16> {
    static DEVICE float load(u16 bits) { float x; asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits)); return x; }
    static DEVICE u16 store(float value) { u16 bits; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value)); return bits; }
    static DEVICE u32 convert_pair(float low, float high) {
        u32 word; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low)); return word;
    }
};

struct bf16 : Pairs<bf16> {
    static DEVICE float load(u16 bits) { return float_of((u32)bits << 16); }
    static DEVICE u16 store(float value) {
        const u32 bits = bits_of(value);  // round to nearest even; a NaN stays one
        return (u16)((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
    }
    static DEVICE u32 convert_pair(float low, float high) {
        u32 word; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low)); return word;
    }
};

// Float8, which is only written: rounded to nearest even, to LARGEST where it is beyond; every NaN becomes 0x7f.
template <int BIAS, int MANTISSA, u32 LARGEST>
struct Float8 {
    typedef u8 storage;
    typedef float real;
    typedef uint2 word;
    enum { N = 8 };
    static DEVICE u8 store(float value) {
        const int shift = 23 - MANTISSA;
        const u32 bits = bits_of(value), magnitude = bits & 0x7fffffffu, odd = magnitude >> shift & 1u;
        const float magic = float_of((u32)(128 - BIAS + shift) << 23);  // its last bit is that of a subnormal number
        const u32 normal = (magnitude + ((u32)(BIAS - 127) << 23) + (1u << (shift - 1)) - 1u + odd) >> shift;
        const u32 subnormal = bits_of(add_(float_of(magnitude), magic)) - bits_of(magic);
        const u32 found = magnitude < (u32)(128 - BIAS) << 23 ? subnormal : normal;
        return (u8)(magnitude > 0x7f800000u ? 0x7fu : (found < LARGEST ? found : LARGEST) | (bits >> 24 & 0x80u));
    }
    static DEVICE u32 pack_four(const float* x) {
        return (u32)store(x[0]) | (u32)store(x[1]) << 8 | (u32)store(x[2]) << 16 | (u32)store(x[3]) << 24;
    }
    static DEVICE uint2 pack(const float* x) { return make_uint2(pack_four(x), pack_four(x + 4)); }
};

struct e4m3 : Float8<7, 3, 0x7e> {};
struct e5m2 : Float8<15, 2, 0x7b> {};

// Round to odd: an inexact result gets an odd last bit, so that rounding it once more, to 16 bits, equals rounding once.
DEVICE float rounded_to_odd(double value) {
    const float near = __double2float_rn(value);
    const double back = (double)near;
    const u32 bits = bits_of(near);
    if (back == value || value != value || (bits & 0x7fffffffu) >= 0x7f800000u) return near;
    const bool away = (bits_of(value) & 0x7fffffffffffffffULL) < (bits_of(back) & 0x7fffffffffffffffULL);
    return float_of((away ? bits - 1 : bits) | 1u);
}

// A result as the number that an element type stores, rounded once in all.
template <class E> DEVICE typename E::real narrowed(float value) { return value; }
template <class E> DEVICE typename E::real narrowed(double value) { return rounded_to_odd(value); }
template <> DEVICE float narrowed<f32>(double value) { return __double2float_rn(value); }
template <> DEVICE double narrowed<f64>(double value) { return value; }

// As an element type, one element at a time.
template <class E>
struct One : E {
    typedef typename E::storage word;
    enum { N = 1 };
    static DEVICE void unpack(word bits, typename E::real* x) { x[0] = E::load(bits); }
    static DEVICE word pack(const typename E::real* x) { return E::store(x[0]); }
};

// ---- rows -------------------------------------------------------------------------------------------------------------------

#include "Rows.abi"

// What positions are in memory. `start` says it where there are positions, and 0 is what tables of locate_rows and the CPU have: units of
// 2^-32. COUNTS is added to it where the number is that of a sequence's first row, from which the others count. Where there are `sequences`
// one behind the other, `positions` are integers instead: the first row of each, and the end. With COUNTED defined, rows stand at the
// number of those before them in their sequence that the mask keeps, counted from its offset.
enum { UNITS, I32, I64, U64, F32, F64, COUNTS };

DEVICE i64 from_integer(i64 position) {
    return position >= -0x80000000LL && position < 0x80000000LL ? (i64)((u64)position << 32) : NOT_A_POSITION;
}

// Rounded to units, ties to even; a float times 2^32 is exact.
DEVICE i64 from_real(double position) {
    if (!(position >= -2147483648.0 && position < 2147483648.0)) return NOT_A_POSITION;
    return __double2ll_rn(__dmul_rn(position, 4294967296.0));
}
DEVICE i64 from_real(float position) {
    if (!(position >= -2147483648.0f && position < 2147483648.0f)) return NOT_A_POSITION;
    return __float2ll_rn(mul_(position, 4294967296.0f));
}

// An integer in memory; a u64 beyond i64 becomes the largest i64, which is no position and no row of a table.
DEVICE i64 integer_at(i64 address, i64 kind) {
    if (kind == I32) return *global<const i32>(address);
    const i64 value = *global<const i64>(address);
    return kind == U64 && value < 0 ? 0x7fffffffffffffffLL : value;
}

DEVICE i64 limited(i64 value, i64 low, i64 high) { return value < low ? low : value > high ? high : value; }

// Offsets are limited before they are added, so that no sum wraps into the valid range.
DEVICE i64 limited_offset(i64 offset) { return limited(offset, -(1LL << 62), 1LL << 62); }
DEVICE i64 counted_from(i64 offset, i64 count) { return from_integer(count + limited_offset(offset)); }

// The position of row t, of any kind but real numbers; the usual one is asked for first.
DEVICE i64 whole_position_at(i64 address, i64 kind, i64 t) {
    if (kind == I64) return from_integer(*global<const i64>(address));
    if (kind == UNITS) return *global<const i64>(address);
    if (kind >= COUNTS) return counted_from(integer_at(address, kind - COUNTS), t);
    return from_integer(integer_at(address, kind));
}

DEVICE i64 position_at(i64 address, i64 kind, i64 t) {
    if (kind == F32) return from_real(*global<const float>(address));
    if (kind == F64) return from_real(*global<const double>(address));
    return whole_position_at(address, kind, t);
}

// The offset of a sequence: `offsets` itself, or the number that lies there.
DEVICE i64 offset_of(const Rows& call, i64 sequence) {
    return call.offsets_kind == 0 ? call.offsets : integer_at(call.offsets + sequence * call.offsets_stride, call.offsets_kind);
}

// One of the sequences that lie one behind the other: the latest in which a thread looked for a row.
struct Sequence {
    i64 number, first, end, begin;  // `begin`: the position that row 0 would have

    DEVICE Sequence() : number(0), first(0), end(0), begin(0) {}

    static DEVICE i64 boundary(const Rows& call, i64 number) {
        return limited(integer_at(call.positions + number * call.positions_row_stride, call.start), 0, call.rows);
    }

    // The last one that begins at or before row t.
    DEVICE void find(const Rows& call, i64 t) {
        if (t >= first && t < end) return;
        i64 low = 0, high = call.sequences - 1;
        while (low < high) {
            const i64 middle = (low + high + 1) >> 1;
            if (boundary(call, middle) <= t) low = middle; else high = middle - 1;
        }
        number = low;
        first = boundary(call, low);
        end = boundary(call, low + 1);
        begin = limited_offset(offset_of(call, low)) - first;
    }
};

// 0 for a row that is not kept.
DEVICE u8 mask_at(const Rows& call, i64 b, i64 t) {
    return call.mask == 0 ? 1 : *global<const u8>(call.mask + b * call.mask_batch_stride + t * call.mask_row_stride);
}

// Whether sequences differ in their positions.
DEVICE bool sequences_differ(const Rows& call) {
#ifdef COUNTED
    if (call.mask_batch_stride != 0) return true;
#endif
    return call.positions_batch_stride != 0;
}

#ifdef COUNTED

// The highest bit of each byte that is not 0.
DEVICE u32 marks_of(u32 bytes) { return (((bytes & 0x7f7f7f7fu) + 0x7f7f7f7fu) | bytes) & 0x80808080u; }

// How many rows from `from` up to `to` are kept, of those that one of so many threads looks at: 16 at a time where they are neighbours.
DEVICE i32 kept_rows(const Rows& call, i64 b, i32 from, i32 to, i32 thread, i32 threads) {
    const i64 begin = call.mask + b * call.mask_batch_stride + from * call.mask_row_stride;
    const i32 rows = to - from, unaligned = (i32)-begin & 15;
    const i32 head = call.mask_row_stride == 1 && unaligned < rows ? unaligned : rows, words = (rows - head) >> 4;
    i32 count = 0;
    for (i32 i = thread; i < words; i += threads) {
        const uint4 word = global<const uint4>(begin + head)[i];
        count += __popc(marks_of(word.x) | marks_of(word.y) >> 1 | marks_of(word.z) >> 2 | marks_of(word.w) >> 3);
    }
    for (i32 i = thread; i < rows - 16 * words; i += threads)
        count += *global<const u8>(begin + (i < head ? i : i + 16 * words) * call.mask_row_stride) != 0;
    return count;
}

// How many rows a mask keeps before row `t` of sequence `b`, from the first row of the one that is there of those one behind the other.
struct Counter {
    Sequence sequence;
    i64 b, offset;
    i32 first, t, count;

    // At a block's first row, before which its threads count together; all of them must come here.
    DEVICE Counter(const Rows& call, i64 first_b, i64 first_t) {
        const i32 row = (i32)limited(first_t, 0, call.rows);
        enter(call, first_b, row);
        if (row == first) return;
        const i32 thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
        const i32 threads = blockDim.x * blockDim.y * blockDim.z;
        // One bit of the threads' counts after the other: a barrier counts in how many of them it is set.
        const i32 own = kept_rows(call, b, first, row, thread, threads), most = (u32)(row - first) / (u32)threads + 18;
        for (i32 bit = 1; bit <= most; bit <<= 1) count += bit * __syncthreads_count((own & bit) != 0);
        t = row;
    }

    // Begin to count in the sequence in which a row is.
    DEVICE void enter(const Rows& call, i64 next_b, i32 row) {
        b = next_b;
        first = 0;
        if (call.sequences != 0) {
            sequence.find(call, row);
            first = (i32)limited(sequence.first, 0, row);
            offset = sequence.begin + sequence.first;
        } else {
            offset = call.positions == 0 ? call.start >> 32
                                         : integer_at(call.positions + b * call.positions_batch_stride, call.start - COUNTS);
            offset = limited_offset(offset);
        }
        t = first;
        count = 0;
    }

    DEVICE bool leaves(const Rows& call, i32 row) {
        return call.sequences != 0 && (row < sequence.first || row >= sequence.end);
    }

    // Go to near a row, which may be anywhere.
    DEVICE void reach(const Rows& call, i64 next_b, i64 next_t) {
        const i32 next = (i32)limited(next_t, 0, call.rows);
        if (leaves(call, next) || next + 16 < t || (next_b != b && sequences_differ(call))) enter(call, next_b, next);
        if (next <= t + 16) return;
        count += kept_rows(call, b, t, next, 0, 1);
        t = next;
    }

    // The position of a row that is near the one that was reached.
    DEVICE i64 position(const Rows& call, i32 row) {
        if (leaves(call, row)) enter(call, b, row);
        for (; t < row; t++) count += mask_at(call, b, t) != 0;
        for (; t > row; t--) count -= mask_at(call, b, t - 1) != 0;
        return from_integer(offset + count);
    }

    // Go on to the next row, of which the mask is known.
    DEVICE void pass(bool kept) {
        count += kept;
        t++;
    }
};

#else

// Nothing: rows are not counted.
struct Counter {
    DEVICE Counter(const Rows&, i64, i64) {}
    DEVICE void reach(const Rows&, i64, i64) {}
    DEVICE void pass(bool) {}
};

#endif

// The position of a row in units of 2^-32; `other` is its head or an axis. `at` and `counter`, which has reached a row near it, are kept
// from row to row.
DEVICE i64 position_of(const Rows& call, i64 b, i64 t, i64 other, Sequence& at, Counter& counter) {
#ifdef COUNTED
    return counter.position(call, (i32)t);
#else
    if (call.positions == 0) return call.start + (t << 32);
    if (call.sequences != 0) {
        at.find(call, t);
        return from_integer(at.begin + t);
    }
    return position_at(call.positions + b * call.positions_batch_stride + t * call.positions_row_stride +
                       other * call.positions_head_stride, call.start, t);
#endif
}
