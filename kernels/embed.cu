// Token embedding: rows of a table by id, scaled, with token types and positions added: the CUDA twin of embed.py.
//
// sum_rows.cuh says the rest. A masked row becomes zero. What is not defined by who compiles is a float32 table with nothing added.

#define IS_EMBEDDING 1
#ifndef FIRST
#define FIRST f32
#define SECOND f32
#define LEARNED f32
#define OUT f32
#define REAL float
#define HAS_SECOND 0
#define ADDS_LEARNED 0
#define ADDS_SINUSOIDAL 0
#endif

#include "sum_rows.cuh"

KERNELS(embed)
