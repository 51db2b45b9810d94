// Rotary positions by a caller's table: pairs of channels of q and k rotated by the cosines and sines of row p: the CUDA twin of
// rotate_table.py, which describes the arguments.
//
// A position outside [0, table_rows) makes a NaN row and reads nothing. See rotate_pairs.cuh for everything else.

#include "rotate_pairs.cuh"
#include "RotateTable.abi"

typedef RotateTable Arguments;

template <class E>
struct Angles {
    typedef typename E::real Real;

    template <int N>
    static DEVICE void at(const Arguments& call, i64 f, i64 b, i64 t, Counter& counter, Real* cosine, Real* sine) {
        Sequence sequence;
        const i64 row = position_of(call, b, t, 0, sequence, counter) >> 32;
        const bool inside = row >= 0 && row < call.table_rows;
        const i64 skipped = row * call.table_row_stride + f * (i64)sizeof(Real);
#pragma unroll
        for (int i = 0; i < N; i++) {
            set_nan(cosine[i]);
            set_nan(sine[i]);
            if (inside) {
                cosine[i] = global<const Real>(call.cosines + skipped)[i];
                sine[i] = global<const Real>(call.sines + skipped)[i];
            }
        }
    }
};

ALL_KERNELS(rotate_table)
