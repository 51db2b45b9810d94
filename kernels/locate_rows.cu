// Positions of rows as i64 in units of 2^-32 from whatever the caller gave: the CUDA twin of locate_rows.py.
//
//     given:   P = round(position * 2^32), ties to even
//     ragged:  P = (t - boundary of t's sequence + offset) * 2^32
//     counted: P = (kept rows of t's sequence before t + offset) * 2^32
//
//     table: (B, T) i64, contiguous, written; `given`: (rows,)
//     positions: (rows,) contiguous, of a kind that `arithmetic.cuh` lists
//     mask: (B, T) bytes, byte strides
//     offsets: (B,), or (n,) where there are boundaries, of kind I32, I64 or U64, byte stride, or 0: `offset` for all
//     boundaries: (sequences + 1,) of kind I32, I64 or U64, byte stride, or 0: one sequence
//     segment: ceil(T / threads of a block), the rows that a thread of `counted` owns
//
// What is not a position in [-2^31, 2^31) becomes NOT_A_POSITION, whose row is NaN; no value makes an access out of bounds.
// Grid: x over rows (given, ragged), y over sequences (ragged); one block a sequence (counted), whose threads own a segment of rows
// each. Bytes moved: 8 written a row, and what is read.

#include "arithmetic.cuh"
#include "LocateRows.abi"

// An integer of kind I32, I64 or U64.
DEVICE i64 integer_at(i64 array, i64 kind, i64 stride, i64 index) { return integer_at(array + index * stride, kind); }

DEVICE i64 boundary(const LocateRows& call, i64 s) {
    return integer_at(call.boundaries, call.boundaries_kind, call.boundaries_stride, s);
}

// The last sequence that begins at or before t.
DEVICE i64 sequence_of(const LocateRows& call, i64 t) {
    i64 low = 0, high = call.sequences - 1;
    while (low < high) {
        const i64 middle = (low + high + 1) >> 1;
        if (boundary(call, middle) <= t) low = middle; else high = middle - 1;
    }
    return low;
}

DEVICE i64 offset_of(const LocateRows& call, i64 b, i64 sequence) {
    if (call.offsets == 0) return call.offset;
    return integer_at(call.offsets, call.offsets_kind, call.offsets_stride, call.boundaries == 0 ? b : sequence);
}

extern "C" __global__ void __launch_bounds__(256) locate_rows_given(const __grid_constant__ LocateRows call) {
    const i64 t = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= call.rows) return;
    const i64 size = call.positions_kind == I32 || call.positions_kind == F32 ? 4 : 8;
    global<i64>(call.table)[t] = position_at(call.positions + t * size, call.positions_kind, t);
}

extern "C" __global__ void __launch_bounds__(256) locate_rows_ragged(const __grid_constant__ LocateRows call) {
    const i64 t = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= call.rows) return;
    i64 sequence = 0, first = 0;
    if (call.boundaries != 0) {
        sequence = sequence_of(call, t);
        first = boundary(call, sequence);
    }
    for (i64 b = blockIdx.y; b < call.batch; b += gridDim.y)
        global<i64>(call.table)[b * call.rows + t] = counted_from(offset_of(call, b, sequence), t - limited(first, 0, call.rows));
}

DEVICE i64 kept(const LocateRows& call, i64 b, i64 t) {
    return *global<const u8>(call.mask + b * call.mask_batch_stride + t * call.mask_row_stride) != 0;
}

extern "C" __global__ void __launch_bounds__(256) locate_rows_counted(const __grid_constant__ LocateRows call) {
    const i64 b = blockIdx.x;
    const i64 length = call.segment;
    const i64 begin = limited(threadIdx.x * length, 0, call.rows);
    const i64 end = limited(begin + length, 0, call.rows);
    i64* const table = global<i64>(call.table) + b * call.rows;
    // 1. Every segment's count, left in its first row.
    i64 count = 0;
    for (i64 t = begin; t < end; t++) count += kept(call, b, t);
    if (begin < end) table[begin] = count;
    __syncthreads();
    // 2. Rows kept before this segment, and before the sequence that runs into it.
    i64 sequence = 0, first = 0, before = 0, before_sequence = 0;
    if (begin < end) {
        if (call.boundaries != 0) {
            sequence = sequence_of(call, begin);
            first = limited(boundary(call, sequence), 0, begin);
        }
        for (i64 segment = 0; segment < begin; segment += length) {
            if (first >= segment && first < segment + length) {
                before_sequence = before;
                for (i64 t = segment; t < first; t++) before_sequence += kept(call, b, t);
            }
            before += table[segment];
        }
        if (first == begin) before_sequence = before;
    }
    __syncthreads();
    // 3. The positions.
    i64 position = before - before_sequence;
    for (i64 t = begin; t < end; t++) {
        if (call.boundaries != 0) {
            const i64 now = sequence_of(call, t);
            if (now != sequence) {
                sequence = now;
                position = 0;
            }
        }
        table[t] = counted_from(offset_of(call, b, sequence), position);
        position += kept(call, b, t);
    }
}
