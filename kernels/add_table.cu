// Learned positions: x*input_scale + learned[position], in place or out of place: the CUDA twin of add_table.py.
//
// See gather_sum.cuh for everything else. A masked row keeps x unscaled. Without definitions it compiles for float32.

#define IS_EMBEDDING 0
#ifndef FIRST
#define FIRST f32
#define SECOND f32
#define LEARNED f32
#define OUT f32
#define REAL float
#define HAS_SECOND 0
#define ADDS_LEARNED 1
#define ADDS_SINUSOIDAL 0
#endif

#include "gather_sum.cuh"

KERNELS(add_table)
