// Token embedding: rows of a table by id, scaled, with token types and positions added: the CUDA twin of embed.py.
//
// See gather_sum.cuh for everything else. A masked row becomes zero. Without definitions it compiles for a float32 table with nothing added.

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

#include "gather_sum.cuh"

KERNELS(embed)
