// Learned positions: x*input_scale + learned[position], in place or out of place: the CUDA twin of add_table.py.
//
// See gather_sum.cuh for everything else. A masked row keeps x unscaled. Without definitions it compiles for float32.

#define IS_EMBEDDING 0

#include "gather_sum.cuh"

KERNELS(add_table)
