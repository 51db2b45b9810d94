// Token embedding: rows of a table by id, scaled, with token types and positions added: the CUDA twin of embed.py.
//
// See gather_sum.cuh for everything else. A masked row becomes zero. Without definitions it compiles for a float32 table with nothing added.

#define IS_EMBEDDING 1

#include "gather_sum.cuh"

KERNELS(embed)
