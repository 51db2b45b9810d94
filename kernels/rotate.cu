// Rotary positions: pairs of channels of q and k rotated by position * frequency: the CUDA twin of rotate.py, which describes the arguments.
//
// See rotate_pairs.cuh for everything else.

#include "rotate_pairs.cuh"
#include "Rotate.abi"

typedef Rotate Arguments;

template <class E>
struct Angles {
    typedef typename E::real Real;

    template <int N>
    static DEVICE void at(const Arguments& call, i64 f, i64 b, i64 t, Counter& counter, Real* cosine, Real* sine) {
        const Real factor = (Real)call.factor;
        u64 fraction[N], whole[N];
        i64 axes[N], position[N];
        Sequence sequence;
        load_all<N>(call.frequencies + f * 8, fraction);
        load_all<N>(call.whole_turns + f * 8, whole);
        if (call.axes == 0) {
            const i64 one = position_of(call, b, t, 0, sequence, counter);
#pragma unroll
            for (int i = 0; i < N; i++) position[i] = one;
        } else {
            load_all<N>(call.axes + f * 8, axes);
#pragma unroll
            for (int i = 0; i < N; i++) position[i] = position_of(call, b, t, axes[i], sequence, counter);
        }
#pragma unroll
        for (int i = 0; i < N; i++) {
            sincos_of(phase(position[i], fraction[i], whole[i]), sine[i], cosine[i]);
            if (position[i] == NOT_A_POSITION) {
                set_nan(sine[i]);
                set_nan(cosine[i]);
            }
            cosine[i] = mul_(cosine[i], factor);
            sine[i] = mul_(sine[i], factor);
        }
        if (call.growths == 0) return;
#pragma unroll
        for (int i = 0; i < N; i++) {
            const i64 distance = position[i] - call.centre;
            u64 integer, fraction;
            Real scale;
            exponent((u64)(distance < 0 ? -distance : distance), global<const u64>(call.growths)[f + i], integer, fraction);
            exp2_of(integer, fraction, (distance < 0) != (call.grows != 0), scale);
            cosine[i] = mul_(cosine[i], scale);
            sine[i] = mul_(sine[i], scale);
        }
    }
};

ALL_KERNELS(rotate)
