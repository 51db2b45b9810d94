// Learned positions: x*input_scale + learned[position], in place or out of place: the CUDA twin of add_table.py.
//
// sum_rows.cuh says the rest. A masked row keeps x unscaled. What is not defined by who compiles is all float32.

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

#include "sum_rows.cuh"

KERNELS(add_table)
