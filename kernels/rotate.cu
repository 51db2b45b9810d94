// Rotary positions: pairs of channels of q and k rotated by position * frequency: the CUDA twin of rotate.py, which describes the arguments.
//
// See rotate_pairs.cuh for everything else.

#include "rotate_pairs.cuh"
#include "Rotate.abi"

typedef Rotate Arguments;

template <class E>
struct Angles {
    typedef typename E::real Real;

    static DEVICE void at(const Arguments& call, i64 f, i64 b, i64 t, Real& cosine, Real& sine) {
        const i64 axis = call.axes != 0 ? ((const i64*)call.axes)[f] : 0;
        const i64 position = position_of(call, b, t, axis);
        sincos_of(phase(position, ((const u64*)call.frequencies)[f], ((const u64*)call.whole_turns)[f]), sine, cosine);
        if (position == NOT_A_POSITION) {
            set_nan(sine);
            set_nan(cosine);
        }
        const Real factor = (Real)call.factor;
        cosine = mul_(cosine, factor);
        sine = mul_(sine, factor);
        if (call.growths != 0) {
            const i64 distance = position - call.centre;
            u64 integer, fraction;
            Real scale;
            exponent((u64)(distance < 0 ? -distance : distance), ((const u64*)call.growths)[f], integer, fraction);
            exp2_of(integer, fraction, (distance < 0) != (call.grows != 0), scale);
            cosine = mul_(cosine, scale);
            sine = mul_(sine, scale);
        }
    }
};

ALL_KERNELS(rotate)
