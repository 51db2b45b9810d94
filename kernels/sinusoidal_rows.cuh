// Rows of an encoding, for `add_sinusoidal.cu` and `gather_sum.cuh`: positions, masks, and the two functions of some frequencies, rotated from
// an anchor.

#include "arithmetic.cuh"
#include "AddSinusoidal.abi"

enum { ANCHOR_ROWS = 8 };

DEVICE i64 position_of(const AddSinusoidal& call, i64 b, i64 t, i64 h) {
    if (call.positions == 0) return call.start + (t << 32);
    return *(const i64*)(call.positions + b * call.positions_batch_stride + t * call.positions_row_stride +
                         h * call.positions_head_stride);
}

DEVICE bool is_kept(const AddSinusoidal& call, i64 b, i64 t) {
    return call.mask == 0 || *(const u8*)(call.mask + b * call.mask_batch_stride + t * call.mask_row_stride) != 0;
}

// The two functions of P neighbouring frequencies, evaluated at an anchor, and their rotation to a row.
template <class Real, int P>
struct Frequencies {
    u64 fraction[P], whole[P];
    Real first[P], second[P];
    i64 anchor;
    bool evaluated;

    DEVICE void load(const AddSinusoidal& call, i64 f) {
#pragma unroll
        for (int i = 0; i < P; i++) {
            fraction[i] = ((const u64*)call.frequencies)[f + i];
            whole[i] = ((const u64*)call.whole_turns)[f + i];
            first[i] = second[i] = 0;
        }
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
        const float* cosines = (const float*)call.cosines + offset;
        const float* sines = (const float*)call.sines + offset;
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

// Where a thread's pairs are in a row. V vectors of N elements hold P pairs; `order` puts pairs (u, v) into the vectors' order.
template <class E>
struct Interleaved {
    enum { V = 1, P = E::N / 2, ROWS = sizeof(typename E::real) == 8 ? 2 : 4 };
    static DEVICE i64 offset(const AddSinusoidal& call, i64 unit, int) { return unit * 16; }
    static DEVICE void order(const typename E::real* u, const typename E::real* v, typename E::real (*pe)[E::N]) {
#pragma unroll
        for (int i = 0; i < P; i++) {
            pe[0][2 * i] = u[i];
            pe[0][2 * i + 1] = v[i];
        }
    }
};

template <class E>
struct Concatenated {
    enum { V = 2, P = E::N, ROWS = 2 };
    static DEVICE i64 offset(const AddSinusoidal& call, i64 unit, int vector) {
        return unit * 16 + vector * call.second_half * (i64)sizeof(typename E::storage);
    }
    static DEVICE void order(const typename E::real* u, const typename E::real* v, typename E::real (*pe)[E::N]) {
#pragma unroll
        for (int i = 0; i < P; i++) {
            pe[0][i] = u[i];
            pe[1][i] = v[i];
        }
    }
};

// First row of a group: groups begin at multiples of eight positions where positions are start + t.
DEVICE i64 first_row(const AddSinusoidal& call, i64 group) {
    return group * ANCHOR_ROWS - (call.positions == 0 ? (call.start >> 32) & (ANCHOR_ROWS - 1) : 0);
}

DEVICE bool varies(const AddSinusoidal& call) { return call.positions_batch_stride != 0 || call.positions_head_stride != 0; }
