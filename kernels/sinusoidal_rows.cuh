// Rows of an encoding, for `add_sinusoidal.cu` and `gather_sum.cuh`: the two functions of some frequencies, rotated from an anchor, and the
// columns where they are.

#include "arithmetic.cuh"
#include "AddSinusoidal.abi"

enum { ANCHOR_ROWS = 8 };

// The two functions of P neighbouring frequencies, evaluated at an anchor, and their rotation to a row.
template <class Real, int P>
struct Frequencies {
    u64 fraction[P], whole[P];
    Real first[P], second[P];
    i64 anchor;
    bool evaluated;

    DEVICE void load(const AddSinusoidal& call, i64 f) {
        load_all<P>(call.frequencies + f * 8, fraction);
        load_all<P>(call.whole_turns + f * 8, whole);
#pragma unroll
        for (int i = 0; i < P; i++) first[i] = second[i] = 0;
        anchor = 0;
        evaluated = false;
    }

    DEVICE void evaluate(const AddSinusoidal& call, i64 at) {
        if (evaluated && at == anchor) return;
        evaluated = true;
        anchor = at;
        const Real amplitude = (Real)call.amplitude;
#pragma unroll
        for (int i = 0; i < P; i++) {
            Real sine, cosine;
            sincos_of(phase(at, fraction[i], whole[i]), sine, cosine);
            if (at == NOT_A_POSITION) {
                set_nan(sine);
                set_nan(cosine);
            }
            sine = mul_(sine, amplitude);
            cosine = mul_(cosine, amplitude);
            first[i] = call.cosine_first ? cosine : sine;
            second[i] = call.cosine_first ? sine : cosine;
        }
    }

    // Write pairs (first, second) of the row at this position: f32 and 16-bit elements rotate the anchor.
    DEVICE void row(const AddSinusoidal& call, i64 position, i64 f, float* u, float* v) {
        evaluate(call, position & ~((i64)(ANCHOR_ROWS - 1) << 32));
        const i64 offset = ((position >> 32) & (ANCHOR_ROWS - 1)) * ((call.width + 1) / 2) + f;
        float cosines[P], sines[P];
        load_all<P>(call.cosines + offset * 4, cosines);
        load_all<P>(call.sines + offset * 4, sines);
#pragma unroll
        for (int i = 0; i < P; i++) {
            u[i] = fma_(first[i], cosines[i], mul_(second[i], sines[i]));
            v[i] = fma_(second[i], cosines[i], -mul_(first[i], sines[i]));
        }
    }

    DEVICE void row(const AddSinusoidal& call, i64 position, i64, double* u, double* v) {
        evaluate(call, position);
#pragma unroll
        for (int i = 0; i < P; i++) {
            u[i] = first[i];
            v[i] = second[i];
        }
    }
};

// Bytes from one column to the next: those of a word of several elements are contiguous.
template <class Storage, int N>
DEVICE i64 step(i64 stride) { return N == 1 ? stride : (i64)sizeof(Storage); }

// What a thread owns of a row: P pairs of columns, in V words of N elements at `columns`; `order` puts pairs (u, v) into the words' order.
template <class E>
struct Interleaved {
    typedef E Element;
    enum { V = 1, N = E::N, P = N / 2, ROWS = sizeof(typename E::real) == 8 ? 2 : 4 };
    static constexpr bool tail = false;
    i64 columns[V];

    DEVICE Interleaved(const AddSinusoidal&, i64 unit) : columns{unit * N} {}

    template <class Real>
    DEVICE void order(const Real* u, const Real* v, Real (*pe)[N]) const {
#pragma unroll
        for (int i = 0; i < P; i++) {
            pe[0][2 * i] = u[i];
            pe[0][2 * i + 1] = v[i];
        }
    }
};

template <class E>
struct Concatenated {
    typedef E Element;
    enum { V = 2, N = E::N, P = N, ROWS = 2 };
    static constexpr bool tail = false;
    i64 columns[V];

    DEVICE Concatenated(const AddSinusoidal& call, i64 unit) : columns{unit * N, unit * N + call.second_half} {}

    template <class Real>
    DEVICE void order(const Real* u, const Real* v, Real (*pe)[N]) const {
#pragma unroll
        for (int i = 0; i < N; i++) {
            pe[0][i] = u[i];
            pe[1][i] = v[i];
        }
    }
};

// One pair of columns any number of bytes apart, or, as its `tail`, the column without a partner.
template <class E>
struct OnePair {
    typedef One<E> Element;
    enum { V = 2, N = 1, P = 1, ROWS = sizeof(typename E::real) == 8 ? 2 : 4 };
    bool tail, tail_is_first;
    i64 columns[V];

    DEVICE OnePair(const AddSinusoidal& call, i64 f) {
        tail = f == call.width / 2;
        tail_is_first = (call.tail_is_cosine != 0) == (call.cosine_first != 0);
        columns[0] = tail ? call.tail_column : call.interleaved ? 2 * f : f;
        columns[1] = columns[0] + (call.interleaved ? 1 : call.second_half);
    }

    template <class Real>
    DEVICE void order(const Real* u, const Real* v, Real (*pe)[N]) const {
        pe[0][0] = tail && !tail_is_first ? v[0] : u[0];
        pe[1][0] = v[0];
    }
};

// First row of a group: groups begin at multiples of eight positions where positions are start + t.
DEVICE i64 first_row(const AddSinusoidal& call, i64 group) {
    return group * ANCHOR_ROWS - (call.positions == 0 ? (call.start >> 32) & (ANCHOR_ROWS - 1) : 0);
}

DEVICE bool varies(const AddSinusoidal& call) { return sequences_differ(call) || call.positions_head_stride != 0; }
