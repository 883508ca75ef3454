"""Numbers of the kernels and of the places in their parameter blocks; plain constants, no imports.

Blocks are int64 arrays. Addresses are those of memory that the caller keeps alive during the call; all
values are float32. A program is an array of (kernel, block address) pairs, run in order; a kernel that returns a positive number has made
so many of the next steps needless.

| block | places |
|---|---|
| PROGRAM | 0 steps, 1 address of the steps |
| GAP_ROWS | rows for blocks, 8 starts of the rows (int32, multiples of GAPS_TOGETHER); 14 gaps (uint8), 15 pairs of symbols (uint8) |
| SKIP_COLUMNS | one source vector, one block; 8 starts of the columns (int32), 14 rows (uint16), 15 symbols (uint8), 16 vectors of output, 17 nonzeros of the source up to which it is computed, 18 steps to skip if it is |
| MEET | 0 two words: threads that have arrived, generation (negative to end all waiting); 1 threads, 2 address of a C function that lets other threads run, or 0 |
| every product with rows in lanes | 0 first and 1 last block of rows, 2 source, 3 bytes from one source vector to the next, 4 source vectors, 5 out, 6 bytes from one output vector to the next, 7 inputs, 8 weights, 9 codebook, 10 bias, 11 lowest and 12 highest output (float bits), 13 factors of the sums |
| FLOAT_ROWS, NIBBLE_ROWS, BYTE_ROWS | 14 buffer of PIECE_INPUTS inputs of a block, 15 the floats -inf and inf, then for the rows of a block ones and zeros |
| SLICE_ROWS | slices for blocks, 8 starts of the slices (int32); 14 row numbers (int32), 15 columns (uint16), 16 symbols (uint8), 17 whether the codebook has at most 16 entries |
| every kernel of planes | 0 first and 1 last output channel, 2 images, 3 source (position 0 of channel 0), 4 bytes from image to image, 5 out (position 0 of channel 0), 6 bytes from output channel to channel and 7 from image to image, 8 vectors of positions, 9 mask (int32 a position: -1, or 0 where the output is cleared), 10 bias, 11 lowest and 12 highest output (float bits), 13 residual or 0, 14 its bytes from channel to channel and 15 from image to image, 16 bytes cleared before and 17 after the positions of an output channel |
| SPARSE_PLANES | 18 starts of the nonzeros (uint32, by block of input channels and output), 19 nonzeros (uint16: tap + 256 symbol), 20 offsets of the taps in bytes (int32), 21 codebook, 22 blocks of input channels, 23 bytes from a block's source and 24 of its offsets to the next, 25 outputs of the layer, 26 most vectors of a tile (at most TILE_VECTORS), 27 copies of a channel's window or 0, 28 these copies (int32 bytes from position to source, vectors besides those of the tile, bytes from the window's start), 29 buffer for the windows of a block, which begins at a cache line, 30 bytes from source channel to channel, 31 bytes of a window, 32 channels of a block and 33 of the last one |
| DENSE_PLANES | first output a multiple of OUTPUTS_TOGETHER; 18 weights, 19 offsets of the taps in bytes (int32), 20 codebook of 16 entries, of 256 for weights in bytes, 21 buffer for the floats of a piece of weights, 22 three more vectors that are written, 23 blocks of input channels, 24 bytes from a block's source to the next, 25 outputs of the layer, 26 taps of a block and 27 of the last one, 28 form of the weights, 29 bytes of a piece of weights (a multiple of 16: the weights of OUTPUTS_TOGETHER outputs for a block, by tap) |
| DEPTHWISE_PLANES | 18 weights (floats, by output), 19 offsets of the taps in bytes (int32), 20 taps, 21 outputs that read the same input channel, 22 bytes from input channel to input channel |
| SCALE_PLANES | with the bias as addends and the residual as second value; source and residual may be the output; 18 bytes from source channel to channel, 19 factors by channel, 20 bytes from an image's factors to the next one's |
| every copy and pooling of planes | 0 first and 1 last channel, 2 images, 3 source (first element of channel 0), 4 bytes from image to image, 5 out (first element of channel 0), 6 bytes from output channel to channel and 7 from image to image, 13 bytes from source channel to channel |
| COPY_ROWS | 8 rows, 9 columns, 10 columns written (zeros after the copied ones), 11 bytes from source row to row, 12 bytes from output row to row, 14 floats from a column's source to the next one's, 15 bytes cleared before the first and 16 after the last row (of output rows) of a channel |
| POOL_LARGEST, POOL_AVERAGE | 8 rows and 9 columns of the output, 10 columns written (zeros after the others), 11 columns of the source, 12 bytes from output row to row, 14 floats from a window's first column to the next one's, 15 columns of a window, 16 floats from one to the next, 17 bytes from one of its rows to the next, 18 floats of the buffer's left margin, 19 vectors of its right margin, 20 table of the output rows (bytes from the source to the window's first row that exists, number of its rows, count of elements of a column as float bits), 21 buffer, 22 count of elements of a row (float an output column; whole vectors are read), 23 and 24 as 15 and 16 of COPY_ROWS, 25 whether all windows stay inside the columns of the source |
| DEPTHWISE_ROWS | 8 to 16 as of COPY_ROWS, the source being position 0 and the step between rows that of the outputs; 17 weights (floats, by output), 18 offsets of the taps in bytes (int32), 19 taps, 20 outputs that read the same input channel, 21 bias, 22 lowest and 23 highest output (float bits) |
| AVERAGE_CHANNELS | 8 vectors of positions (zero outside of the image), 14 count of elements (float bits), 15 bytes cleared after the value written |
| ELEMENTWISE | 0 first and 1 last row of an array of four axes, 2 first value, 3 out, 4 second and 5 third size of the array, bytes along its first three axes: 6, 7, 8 of the first value, 9, 10, 11 of the output, 13, 14, 15 of the second value; 12 second value or 0, floats from column to column: 16 of the first value and 17 of the second one (1 or 0), 18 columns, 19 operation and 20 function (0: none), float bits: 21 factor of the first value, 22 and 23 parameters of the function, 24 lowest and 25 highest output |
| SOFTMAX_ROWS | 0 first and 1 last row, 2 source, 3 bytes from row to row, 4 out, 5 bytes from row to row, 6 columns, 7 addend or 0, 8 second and 9 third size of the array of rows, 10, 11, 12 bytes along its axes in the addend, 13 factor of the source (float bits) |
| NORMAL_ROWS | 0 to 6 as of SOFTMAX_ROWS, 7 addend or 0, 8 its bytes from row to row, 9 factors and 10 bias by column, float bits: 11 what is added to the variance, 12 one over the columns; 13 whether the mean is subtracted |
| AVERAGE_ROWS | 0 first and 1 last group of rows, 2 source, 3 bytes from group to group, 4 out, 5 bytes from group to group, 6 columns, 7 bytes from row to row, 8 rows of a group, 9 factor of the sums (float bits) |
| BATCHED | 0 first and 1 last panel of 32 columns of all pairs of matrices, 2 first matrix, 3 second matrix, 4 out, 5 rows, 6 inputs, 7 columns, 8 second and 9 third size of the array of pairs, bytes along its three axes: 10, 11, 12 of the first, 13, 14, 15 of the second matrix, 16, 17, 18 of the output; 19 bytes from row to row of the first matrix, whose inputs lie side by side, of the second one 20 from input to input and 21 from column to column (one of them 4), 22 bytes from output row to row, 23 panels of a pair, 24 buffer of 32 floats for each input, rounded up to 16 inputs, 25 factor of the sums (float bits) |
| RECURRENT | 0 first and 1 last direction, 2 cell, 3 steps, 4 vectors of the batch, 5 units, 6 address of the entry of the kernels; from FIRST_DIRECTION on for each direction: 0 to 23 block and 48 kernel of the product of the states, 24 to 47 and 61 of that of a GRU's reset states; 49 products of the inputs at the first step, 50 bytes from step to step (negative backwards) and 51 from vector to vector, 52 out at the first step, 53 its bytes from step to step and 54 from vector to vector, 55 states, 56 bytes from vector to vector, 57 cells, or reset states of a GRU, 58 the state's products, 59 bytes from vector to vector, 60 second products |
| INT8_ROWS, INT8_NIBBLE_ROWS | 2 source (bytes), 7 steps of eight inputs, 8 weights (int8, or symbols of half a byte), 9 codebook (16 int8, four times), 14 sums of each row's weights (int32), 15 table of the source vectors: 16 bytes each, a scale (float), a zero point (int32), the inverse of the scale |
| QUANTIZE_ROWS | 0 first and 1 last vector, 2 source, 3 bytes from vector to vector, 4 floats of a vector, 5 out, 6 bytes from an output vector to the next (a multiple of 16), 7 table as for INT8_ROWS |
| RANGE_PLANES | 0 first and 1 last channel, 2 images, 3 source (first float of channel 0), 4 bytes from image to image, 5 from channel to channel, 6 vectors of a channel, 7 ranges (16 bytes for each image and channel), 8 channels |
| QUANTIZE_PLANES | 0 first and 1 last group of four channels, 2 to 8 as RANGE_PLANES, 9 out, 10 its bytes from group to group and 11 from image to image, 12 table as for INT8_ROWS, of the images, 13 the same again for this thread |
| INT8_PLANES | 3 source (position 0 of group 0 of four channels), as DENSE_PLANES with groups for channels, but 20 sums of each output's weights (int32), 21 table of the images as for INT8_ROWS, 28 factors of the outputs |
| TRANSPOSE | 0 first and 1 last group of 16 columns, 2 source, 3 bytes from row to row, 4 out, 5 bytes from output row to row, 6 rows and 7 columns of the source, 8 columns written of an output row (zeros after those of the source) |

Copies, rows of depthwise convolutions, transposition and the average of channels read and write their elements and nothing else. Pooling writes
its output rows and its buffer, and reads whole vectors of source rows: up to 60 bytes after a row.

Planes: a kernel writes whole vectors of positions, and the margins, of its output channels in every image, and
nothing else. The residual may be the output itself, the source may not. For each tap that has a weight, the
vectors of positions shifted by the tap are read: those of the last channel go on after its end by up to 15
positions and the reach of the taps (Taps.slack of `nqruntime.packing`). That memory must be readable, and what is
there has no effect.
"""  # noqa: E501

from __future__ import annotations

LANES = 16
"""Floats of a vector."""

PROGRAM, FLOAT_ROWS, NIBBLE_ROWS, BYTE_ROWS, SLICE_ROWS, SKIP_COLUMNS, MEET, GAP_ROWS = range(8)

SPARSE_PLANES, DENSE_PLANES, DEPTHWISE_PLANES, SCALE_PLANES = range(32, 36)

COPY_ROWS, POOL_LARGEST, POOL_AVERAGE, AVERAGE_CHANNELS, TRANSPOSE, DEPTHWISE_ROWS = range(36, 42)

ELEMENTWISE, SOFTMAX_ROWS, NORMAL_ROWS, AVERAGE_ROWS, BATCHED, RECURRENT = range(64, 70)

ADD, SUBTRACT, SUBTRACT_FIRST, MULTIPLY, DIVIDE, DIVIDE_BY_FIRST, SMALLEST, LARGEST = range(1, 9)
"""Operations of two values."""

EXPONENTIAL, TANH, SIGMOID, ERF, GELU, GELU_TANH, SILU, HARD_SIGMOID = range(1, 9)
SQUARE_ROOT, RECIPROCAL, ABSOLUTE, NEGATIVE, LEAKY_RELU, ELU, HARD_SWISH = range(9, 16)
"""Functions of one element."""

LSTM, GRU, GRU_RESETS_PRODUCT, RNN_TANH, RNN_RELU, GRU_RESET = range(6)
"""Cells of recurrent layers, and the part of a GRU before its second product."""

FIRST_DIRECTION, DIRECTION_PLACES = 8, 64
"""Place of the first direction in the block of a recurrent layer, and places of each."""

PANEL_COLUMNS = 32
"""Columns of the second matrix of a BATCHED product that are copied together."""

QUANTIZE_ROWS, INT8_ROWS, INT8_NIBBLE_ROWS, RANGE_PLANES, QUANTIZE_PLANES, INT8_PLANES = range(96, 102)

FLOAT_WEIGHTS, NIBBLE_WEIGHTS, BYTE_WEIGHTS = range(3)
"""Forms of dense weights of planes."""

TILE_VECTORS = 12
"""Most vectors of positions in a tile of the sparse convolution of planes."""

OUTPUTS_TOGETHER = 8
"""Output channels of a tile of the dense convolution of planes."""

GRAINS = {DENSE_PLANES: OUTPUTS_TOGETHER, INT8_PLANES: OUTPUTS_TOGETHER}
"""Work items that belong together, for kernels whose first item must be a multiple of them."""

ROW_VECTORS = 4
"""Vectors of 16 rows in a block of the products with rows in lanes."""

GAPS_TOGETHER = 4
"""Nonzeros of a row that are added at once."""

PIECE_INPUTS = 128
"""Inputs of a block of rows that are decoded together (32 KB of floats): a multiple of 8, for whole words."""
