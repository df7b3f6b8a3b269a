// A tile of pixels by channels: what it needs comes into shared memory stage by stage, sums stay in registers.

// Where a tile's rows come from (an image), where its columns do (the weight), and how far the sums run.
template <class T, class Value>
struct Source {
  const T *rows;
  const Value *columns;
  int size_d, size_h, size_w;  // of the image that rows come from
  Strides row;                 // its strides; K runs along c
  int column, column_k;        // strides of the weight, along the columns and along K
  int tap_d, tap_h, tap_w;     // and along the taps
  Taps d, h, w;
  int columns_wanted, depth;  // channels of the tile's group; K of one tap
};

// ROWS4: K lies densely in the image, in fours. COLUMNS_DENSE: columns, not K, lie densely in the weight; COLUMNS4: in
// fours. PIXELS_FIRST: results lie pixel by pixel within a channel, so neighbouring threads take neighbouring pixels.
template <class Rule, class T, int ROWS, int COLUMNS, int R, int C, bool ROWS4, bool COLUMNS_DENSE, bool COLUMNS4,
          bool PIXELS_FIRST>
struct Tile {
  using Value = typename Rule::Value;
  static constexpr int DEPTH = 8;
  static constexpr int THREADS = ROWS / R * (COLUMNS / C);
  static constexpr int ROW_FOURS = ROWS * DEPTH / 4, COLUMN_FOURS = COLUMNS * DEPTH / 4;
  static constexpr int ROW_SLOTS = (ROW_FOURS + THREADS - 1) / THREADS;
  static constexpr int COLUMN_SLOTS = (COLUMN_FOURS + THREADS - 1) / THREADS;
  static constexpr int SLACK = 4;  // keeps the four stores of a transposed load in different banks

  Value sums[R][C];
  Value own[Rule::NEEDS_OWN ? R : 1][Rule::NEEDS_OWN ? C : 1];
  Value total[R];  // sum of what a row brought, where the rule needs it
  Value bad[C];    // NaN where a weight of the column is

  // Row r of this thread, and column c, in the tile.
  static __device__ int row_of(int r) {
    const int at = PIXELS_FIRST ? threadIdx.x % (ROWS / R) : threadIdx.x / (COLUMNS / C);
    return r / 4 * (ROWS / R * 4) + at * 4 + r % 4;
  }
  static __device__ int column_of(int c) {
    const int at = PIXELS_FIRST ? threadIdx.x / (ROWS / R) : threadIdx.x % (COLUMNS / C);
    return c / 4 * (COLUMNS / C * 4) + at * 4 + c % 4;
  }

  // Which four of a stage slot s of this thread brings: K from 4 * quarter on for a row; for a column likewise, or the
  // columns from 4 * quarter on.
  struct Slot {
    int line, quarter;
    bool exists;
  };
  static __device__ Slot row_slot(int s) {
    const int id = threadIdx.x + s * THREADS;
    return {ROWS4 ? id / (DEPTH / 4) : id % ROWS, ROWS4 ? id % (DEPTH / 4) : id / ROWS,
            ROW_FOURS % THREADS == 0 || id < ROW_FOURS};
  }
  static __device__ Slot column_slot(int s) {
    constexpr int QUARTERS = COLUMNS_DENSE ? COLUMNS / 4 : DEPTH / 4;
    const int id = threadIdx.x + s * THREADS;
    return {id / QUARTERS, id % QUARTERS, COLUMN_FOURS % THREADS == 0 || id < COLUMN_FOURS};
  }

  // place(row, base, d, h, w) says where in the image that row begins; false for a row that does not exist.
  template <class Place>
  __device__ void run(const Source<T, Value> &from, int first_column, Place place) {
    alignas(16) __shared__ Value shared_rows[2][DEPTH][ROWS + SLACK];
    alignas(16) __shared__ Value shared_columns[2][DEPTH][COLUMNS + SLACK];
    constexpr int NOWHERE = -(1 << 30);

    long long base[ROW_SLOTS];
    int at_d[ROW_SLOTS], at_h[ROW_SLOTS], at_w[ROW_SLOTS];
    bool inside[ROW_SLOTS];
    Value partial[ROW_SLOTS];
    const Value *columns[COLUMN_SLOTS];
#pragma unroll
    for (int s = 0; s < ROW_SLOTS; ++s) {
      const Slot slot = row_slot(s);
      if (!slot.exists || !place(slot.line, base[s], at_d[s], at_h[s], at_w[s])) base[s] = 0, at_d[s] = NOWHERE;
      base[s] += static_cast<long long>(slot.quarter) * 4 * from.row.c;
      partial[s] = 0;
    }
#pragma unroll
    for (int s = 0; s < COLUMN_SLOTS; ++s) {
      const Slot slot = column_slot(s);
      const int column = first_column + (COLUMNS_DENSE ? slot.quarter * 4 : slot.line);
      const int k = COLUMNS_DENSE ? slot.line : slot.quarter * 4;
      columns[s] =
          from.columns + static_cast<long long>(column) * from.column + static_cast<long long>(k) * from.column_k;
    }
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int c = 0; c < C; ++c) sums[r][c] = 0;

    int i_d = 0, i_h = 0, i_w = 0, k = 0;  // of the stage to be brought
    long long row_offset = 0, column_offset = 0;
    const auto enter_tap = [&] {
      const int d = from.d.first + i_d * from.d.step, h = from.h.first + i_h * from.h.step;
      const int w = from.w.first + i_w * from.w.step;
      row_offset = static_cast<long long>(d) * from.row.d + static_cast<long long>(h) * from.row.h +
                   static_cast<long long>(w) * from.row.w;
      column_offset = (from.d.tap + i_d * from.d.tap_step) * from.tap_d +
                      (from.h.tap + i_h * from.h.tap_step) * from.tap_h +
                      (from.w.tap + i_w * from.w.tap_step) * from.tap_w;
#pragma unroll
      for (int s = 0; s < ROW_SLOTS; ++s)
        inside[s] = static_cast<unsigned>(at_d[s] + d) < static_cast<unsigned>(from.size_d) &&
                    static_cast<unsigned>(at_h[s] + h) < static_cast<unsigned>(from.size_h) &&
                    static_cast<unsigned>(at_w[s] + w) < static_cast<unsigned>(from.size_w);
    };
    const auto advance = [&] {
      k += DEPTH;
      row_offset += static_cast<long long>(DEPTH) * from.row.c;
      column_offset += static_cast<long long>(DEPTH) * from.column_k;
      if (k < from.depth) return;
      k = 0;
      if (++i_w == from.w.count) {
        i_w = 0;
        if (++i_h == from.h.count) i_h = 0, ++i_d;
      }
      enter_tap();
    };

    // What was brought, as it lies in memory: what looks at it waits, so only `put` does, after all sums.
    Words<T> row_words[ROW_SLOTS];
    Four<T> row_values[ROW_SLOTS];
    Words<Value> column_words[COLUMN_SLOTS];
    Four<Value> column_values[COLUMN_SLOTS], bad_columns[COLUMN_SLOTS];
    for (auto &four : bad_columns) four = {};
    const auto bring = [&] {
#pragma unroll
      for (int s = 0; s < ROW_SLOTS; ++s) {
        const Slot slot = row_slot(s);
        const int left = inside[s] ? from.depth - k - slot.quarter * 4 : 0;
        const T *source = from.rows + base[s] + row_offset;
        if (ROWS4) {
          row_words[s].load(source, left > 0);
        } else {
          row_values[s] = {};
#pragma unroll
          for (int i = 0; i < 4; ++i)
            if (i < left) row_values[s].at[i] = source[static_cast<long long>(i) * from.row.c];
        }
      }
#pragma unroll
      for (int s = 0; s < COLUMN_SLOTS; ++s) {
        const Slot slot = column_slot(s);
        const int columns_left = from.columns_wanted - first_column - (COLUMNS_DENSE ? slot.quarter * 4 : slot.line);
        const int k_left = from.depth - k - (COLUMNS_DENSE ? slot.line : slot.quarter * 4);
        const int left = !slot.exists                   ? 0
                         : COLUMNS_DENSE && k_left <= 0 ? 0
                         : COLUMNS_DENSE                ? columns_left
                         : columns_left <= 0            ? 0
                                                        : k_left;
        const Value *source = columns[s] + column_offset;
        if (COLUMNS4) {
          column_words[s].load(source, left > 0);
        } else {
          const int step = COLUMNS_DENSE ? from.column : from.column_k;
          column_values[s] = {};
#pragma unroll
          for (int i = 0; i < 4; ++i)
            if (i < left) column_values[s].at[i] = source[static_cast<long long>(i) * step];
        }
      }
    };
    const auto put = [&](int buffer) {
#pragma unroll
      for (int s = 0; s < ROW_SLOTS; ++s) {
        const Slot slot = row_slot(s);
        if (!slot.exists) continue;
        Value four[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          four[i] = widened(ROWS4 ? row_words[s][i] : row_values[s].at[i]);
          shared_rows[buffer][slot.quarter * 4 + i][slot.line] = four[i];
        }
        if (Rule::SATURATES) partial[s] += (four[0] + four[1]) + (four[2] + four[3]);
      }
#pragma unroll
      for (int s = 0; s < COLUMN_SLOTS; ++s) {
        const Slot slot = column_slot(s);
        if (!slot.exists) continue;
        Four<Value> four;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const Value w = COLUMNS4 ? column_words[s][i] : column_values[s].at[i];
          if (Rule::SATURATES && w != w) bad_columns[s].at[i] = w;
          four.at[i] = Rule::weight(w);
        }
        if (COLUMNS_DENSE) {
          *reinterpret_cast<Four<Value> *>(&shared_columns[buffer][slot.line][slot.quarter * 4]) = four;
        } else {
#pragma unroll
          for (int i = 0; i < 4; ++i) shared_columns[buffer][slot.quarter * 4 + i][slot.line] = four.at[i];
        }
      }
    };

    const int stages = from.d.count * from.h.count * from.w.count * ((from.depth + DEPTH - 1) / DEPTH);
    if (stages > 0) {
      enter_tap();
      bring();
      put(0);
    }
    __syncthreads();
    for (int stage = 0; stage < stages; ++stage) {
      const int buffer = stage & 1;
      const bool more = stage + 1 < stages;
      if (more) {
        advance();
        bring();
      }
#pragma unroll
      for (int i = 0; i < DEPTH; ++i) {
        alignas(16) Value row[R], column[C];
#pragma unroll
        for (int r = 0; r < R; r += 4)
          *reinterpret_cast<Four<Value> *>(row + r) =
              *reinterpret_cast<const Four<Value> *>(&shared_rows[buffer][i][row_of(r)]);
#pragma unroll
        for (int c = 0; c < C; c += 4)
          *reinterpret_cast<Four<Value> *>(column + c) =
              *reinterpret_cast<const Four<Value> *>(&shared_columns[buffer][i][column_of(c)]);
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
          for (int c = 0; c < C; ++c)
            Rule::add(sums[r][c], own[Rule::NEEDS_OWN ? r : 0][Rule::NEEDS_OWN ? c : 0], row[r], column[c]);
      }
      if (more) put(buffer ^ 1);
      __syncthreads();
    }

    if (Rule::SATURATES) {  // noted by the threads that brought rows and columns: added up in order
#pragma unroll
      for (int s = 0; s < ROW_SLOTS; ++s) {
        const Slot slot = row_slot(s);
        if (slot.exists) shared_rows[0][slot.quarter][slot.line] = partial[s];
      }
#pragma unroll
      for (int s = 0; s < COLUMN_SLOTS; ++s) {
        const Slot slot = column_slot(s);
        if (slot.exists)
          *reinterpret_cast<Four<Value> *>(&shared_columns[0][slot.line][slot.quarter * 4]) = bad_columns[s];
      }
      __syncthreads();
#pragma unroll
      for (int c = 0; c < C; ++c) {
        bad[c] = 0;
#pragma unroll
        for (int line = 0; line < DEPTH; ++line) bad[c] += shared_columns[0][line][column_of(c)];
      }
#pragma unroll
      for (int r = 0; r < R; ++r) {
        total[r] = 0;
#pragma unroll
        for (int quarter = 0; quarter < DEPTH / 4; ++quarter) total[r] += shared_rows[0][quarter][row_of(r)];
      }
    }
  }

  // use(r, c, what `from` holds there, or zero), read four at a time (LOAD4) where they are neighbours in memory.
  template <bool LOAD4, class Use>
  static __device__ void load(const T *from, const long long (&row_at)[R], const bool (&row_exists)[R],
                              int first_column, int columns, int column_stride, Use use) {
    constexpr int BY_R = LOAD4 && PIXELS_FIRST ? 4 : 1, BY_C = LOAD4 && !PIXELS_FIRST ? 4 : 1;
#pragma unroll
    for (int r = 0; r < R; r += BY_R) {
#pragma unroll
      for (int c = 0; c < C; c += BY_C) {
        const int column = first_column + column_of(c);
        const bool exists = row_exists[r] && column < columns;
        const T *place = from + row_at[r] + static_cast<long long>(column) * column_stride;
        if (LOAD4) {
          Words<T> four;
          four.load(place, exists);
#pragma unroll
          for (int i = 0; i < 4; ++i) use(r + i % BY_R, c + i % BY_C, four[i]);
        } else {
          use(r, c, exists ? *place : T{});
        }
      }
    }
  }

  // value(r, c) to `to`, four at a time (STORE4) where they are neighbours in memory.
  template <bool STORE4, class Value>
  static __device__ void store(T *to, const long long (&row_at)[R], const bool (&row_exists)[R], int first_column,
                               int columns, int column_stride, Value value) {
    constexpr int BY_R = STORE4 && PIXELS_FIRST ? 4 : 1, BY_C = STORE4 && !PIXELS_FIRST ? 4 : 1;
#pragma unroll
    for (int r = 0; r < R; r += BY_R) {
#pragma unroll
      for (int c = 0; c < C; c += BY_C) {
        const int column = first_column + column_of(c);
        if (!row_exists[r] || column >= columns) continue;
        T *place = to + row_at[r] + static_cast<long long>(column) * column_stride;
        if (STORE4) {
          Four<T> four;
#pragma unroll
          for (int i = 0; i < 4; ++i) four.at[i] = narrowed<T>(value(r + i % BY_R, c + i % BY_C));
          *reinterpret_cast<Four<T> *>(place) = four;
        } else {
          *place = narrowed<T>(value(r, c));
        }
      }
    }
  }
};
