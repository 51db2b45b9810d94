// Positions of rows as i64 in units of 2^-32 from whatever the caller gave: the CUDA twin of locate_rows.py.
//
//     given:   P = what other kernels make of the same `Rows` (`position_of` in arithmetic.cuh)
//     counted: P = (kept rows of t's sequence before t + offset) * 2^32
//
//     table: (B, T) i64, contiguous, written
//     counted has a mask; `offsets` are (B,), or (n,) where there are `sequences`
//     segment: ceil(T / threads of a block), the rows that a thread of `counted` owns
//
// What is not a position in [-2^31, 2^31) becomes NOT_A_POSITION, whose row is NaN; no value makes an access out of bounds.
// Grid: x over rows, y over sequences of the batch (given); one block a sequence (counted), whose threads own a segment of rows
// each. Bytes moved: 8 written a row, and what is read.

#include "arithmetic.cuh"
#include "LocateRows.abi"

extern "C" __global__ void __launch_bounds__(256) locate_rows_given(const __grid_constant__ LocateRows call) {
    const i64 t = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= call.rows) return;
    Sequence sequence;
    Counter counter(call, 0, 0);
    for (i64 b = blockIdx.y; b < call.batch; b += gridDim.y)
        global<i64>(call.table)[b * call.rows + t] = position_of(call, b, t, 0, sequence, counter);
}

extern "C" __global__ void __launch_bounds__(256) locate_rows_counted(const __grid_constant__ LocateRows call) {
    const i64 b = blockIdx.x;
    const i64 length = call.segment;
    const i64 begin = limited(threadIdx.x * length, 0, call.rows);
    const i64 end = limited(begin + length, 0, call.rows);
    i64* const table = global<i64>(call.table) + b * call.rows;
    // 1. Every segment's count, left in its first row.
    i64 count = 0;
    for (i64 t = begin; t < end; t++) count += mask_at(call, b, t) != 0;
    if (begin < end) table[begin] = count;
    __syncthreads();
    // 2. Rows kept before this segment, and before the sequence that runs into it.
    Sequence sequence;
    i64 before = 0, before_sequence = 0;
    if (begin < end) {
        if (call.sequences != 0) sequence.find(call, begin);
        const i64 first = limited(sequence.first, 0, begin);
        for (i64 segment = 0; segment < begin; segment += length) {
            if (first >= segment && first < segment + length) {
                before_sequence = before;
                for (i64 t = segment; t < first; t++) before_sequence += mask_at(call, b, t) != 0;
            }
            before += table[segment];
        }
        if (first == begin) before_sequence = before;
    }
    __syncthreads();
    // 3. The positions.
    i64 position = before - before_sequence;
    for (i64 t = begin; t < end; t++) {
        if (call.sequences != 0) {
            const i64 latest = sequence.number;
            sequence.find(call, t);
            if (sequence.number != latest) position = 0;
        }
        table[t] = counted_from(offset_of(call, call.sequences != 0 ? sequence.number : b), position);
        position += mask_at(call, b, t) != 0;
    }
}
