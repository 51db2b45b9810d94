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

    static DEVICE void at(const Arguments& call, i64 f, i64 b, i64 t, Real& cosine, Real& sine) {
        const i64 row = position_of(call, b, t, 0) >> 32;
        if (row < 0 || row >= call.table_rows) {
            set_nan(cosine);
            set_nan(sine);
            return;
        }
        const i64 skipped = row * call.table_row_stride + f * (i64)sizeof(Real);
        cosine = *(const Real*)(call.cosines + skipped);
        sine = *(const Real*)(call.sines + skipped);
    }
};

ALL_KERNELS(rotate_table)
