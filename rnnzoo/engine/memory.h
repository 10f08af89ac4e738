// A matrix memory: S' = a ∘ S + v kᵀ and o = S' q, where v = p + c ∘ (S b) in a delta rule and v = p elsewhere. What was
// held, c ∘ (S b), may also be written apart, under another key e.
//
// S has a row for each value and a column for each key. A thread takes a sequence, and of its state a band of rows at a
// time through a stretch of time steps, so that what is read and written lies in the nearest cache. The forward pass
// keeps the state at the start of each stretch; the backward pass computes the steps between again.
//
// This follows kernel.h. The generated code defines before it KEYS, VALUES, DECAY (what a is: FIXED, a NUMBER a time step
// or a VECTOR over keys), FACTOR (a itself where it is FIXED), DELTA, APART (there is e), SINGLE (c is one number) and KEYS_LAST (how S lies
// outside: [VALUES, KEYS] or [KEYS, VALUES]).

namespace {

constexpr int64_t VECTORS = (KEYS + LANES - 1) / LANES, WIDTH = VECTORS * LANES, STATE = VALUES * WIDTH, BAND = 16;

enum { INITIAL, A, P, KEY, QUERY, BEFORE, C, E, ANEW, KEPT, OUT, FINAL,
       D_OUT, D_FINAL, D_A, D_P, D_KEY, D_QUERY, D_BEFORE, D_C, D_E, D_INITIAL };

typedef decltype(vec{} == vec{}) lanes;

INLINE vec load(const S* at, int64_t n) { return *(const vec*)(at + n * LANES); }
INLINE void store(S* at, int64_t n, vec x) { *(vec*)(at + n * LANES) = x; }

// The n-th vector of a row without what lies past its end, where infinity times zero may stand.
INLINE vec valid(vec x, int64_t n) {
  if (KEYS % LANES == 0 || n + 1 < VECTORS) return x;
  lanes inside;
  for (int l = 0; l < LANES; ++l) inside[l] = l < KEYS % LANES ? -1 : 0;
  return (vec)((lanes)x & inside);
}

INLINE S total(vec x) {
  S parts[LANES], sum = 0;
  std::memcpy(parts, &x, sizeof x);
#pragma omp simd reduction(+ : sum)
  for (int l = 0; l < LANES; ++l) sum += parts[l];
  return sum;
}

// One time step's vectors, each WIDTH long and zero past KEYS.
struct Step { S *a, *k, *q, *b, *e, *d_a, *d_k, *d_q, *d_b, *d_e; };

INLINE vec decay(const Step& s, int64_t n) { return DECAY == FIXED ? vec{} + S(FACTOR) : load(s.a, n); }

// J rows of the state at one time step. `old` is S b, `v` what is written, `o` what is read, if it is asked for.
template <int J>
INLINE void advance(const S* from, S* to, const Step& s, const S* p, const S* c, S* old, S* v, S* o) {
  S values[J], held[J];
  for (int j = 0; j < J; ++j) values[j] = p[j];
  if (DELTA) {
    vec sum[J] = {};
    for (int64_t n = 0; n < VECTORS; ++n)
      for (int j = 0; j < J; ++j) sum[j] += valid(load(s.b, n) * load(from + j * WIDTH, n), n);
    for (int j = 0; j < J; ++j) {
      old[j] = total(sum[j]);
      held[j] = c[j] * old[j];
      if (!APART) values[j] += held[j];
    }
  }
  vec sum[J] = {};
  for (int64_t n = 0; n < VECTORS; ++n) {
    vec a = decay(s, n), k = load(s.k, n), q = load(s.q, n);
#pragma GCC unroll 4
    for (int j = 0; j < J; ++j) {
      vec x = a * load(from + j * WIDTH, n) + values[j] * k;
      if (APART) x += held[j] * load(s.e, n);
      store(to + j * WIDTH, n, x);
      if (o) sum[j] += valid(q * x, n);
    }
  }
  for (int j = 0; j < J; ++j) v[j] = values[j];
  if (o)
    for (int j = 0; j < J; ++j) o[j] = total(sum[j]);
}

inline void advance(int64_t rows, const S* from, S* to, const Step& s, const S* p, const S* c, S* old, S* v, S* o) {
  int64_t j = 0;
  for (; j + 4 <= rows; j += 4)
    advance<4>(from + j * WIDTH, to + j * WIDTH, s, p + j, c + j, old + j, v + j, o ? o + j : o);
  for (; j < rows; ++j)
    advance<1>(from + j * WIDTH, to + j * WIDTH, s, p + j, c + j, old + j, v + j, o ? o + j : o);
}

// The same backwards: `g` is the gradient of the state after the step and becomes that of the state before.
template <int J>
INLINE void retreat(const S* from, const S* to, S* g, const Step& s, const S* c, const S* old, const S* v,
                    const S* d_o, S* d_p, S* d_c) {
  vec sum[J] = {}, apart[J] = {};
  for (int64_t n = 0; n < VECTORS; ++n) {
    vec a = decay(s, n), k = load(s.k, n), q = load(s.q, n), e = load(s.e, n);
    vec d_a = load(s.d_a, n), d_k = load(s.d_k, n), d_q = load(s.d_q, n), d_e = load(s.d_e, n);
#pragma GCC unroll 4
    for (int j = 0; j < J; ++j) {
      vec x = load(g + j * WIDTH, n) + q * d_o[j];
      sum[j] += valid(k * x, n);
      d_q += d_o[j] * load(to + j * WIDTH, n);
      d_k += v[j] * x;
      if (APART) {
        apart[j] += valid(e * x, n);
        d_e += c[j] * old[j] * x;
      }
      if (DECAY != FIXED) d_a += x * load(from + j * WIDTH, n);
      store(g + j * WIDTH, n, DELTA ? x : a * x);
    }
    store(s.d_a, n, d_a);
    store(s.d_k, n, d_k);
    store(s.d_q, n, d_q);
    if (APART) store(s.d_e, n, d_e);
  }
  S d_old[J];
  for (int j = 0; j < J; ++j) {
    d_p[j] = total(sum[j]);
    S d_held = APART ? total(apart[j]) : d_p[j];
    d_c[j] = DELTA ? d_held * old[j] : 0;
    d_old[j] = DELTA ? d_held * c[j] : 0;
  }
  for (int64_t n = 0; DELTA && n < VECTORS; ++n) {
    vec a = decay(s, n), b = load(s.b, n), d_b = load(s.d_b, n);
#pragma GCC unroll 4
    for (int j = 0; j < J; ++j) {
      d_b += d_old[j] * load(from + j * WIDTH, n);
      store(g + j * WIDTH, n, a * load(g + j * WIDTH, n) + d_old[j] * b);
    }
    store(s.d_b, n, d_b);
  }
}

inline void retreat(int64_t rows, const S* from, const S* to, S* g, const Step& s, const S* c, const S* old,
                    const S* v, const S* d_o, S* d_p, S* d_c) {
  int64_t j = 0;
  for (; j + 4 <= rows; j += 4)
    retreat<4>(from + j * WIDTH, to + j * WIDTH, g + j * WIDTH, s, c + j, old + j, v + j, d_o + j, d_p + j, d_c + j);
  for (; j < rows; ++j)
    retreat<1>(from + j * WIDTH, to + j * WIDTH, g + j * WIDTH, s, c + j, old + j, v + j, d_o + j, d_p + j, d_c + j);
}

inline void fetch(const S* from, S* to) {
  for (int64_t j = 0; j < VALUES; ++j)
    for (int64_t i = 0; i < WIDTH; ++i)
      to[j * WIDTH + i] = from && i < KEYS ? from[KEYS_LAST ? j * KEYS + i : i * VALUES + j] : S(0);
}

inline void put(const S* from, S* to) {
  for (int64_t j = 0; j < VALUES; ++j)
    for (int64_t i = 0; i < KEYS; ++i) to[KEYS_LAST ? j * KEYS + i : i * VALUES + j] = from[j * WIDTH + i];
}

// What a thread needs for a stretch of time steps of one sequence.
struct Stretch {
  S* const memory;
  const int64_t T, B, most;
  S* const* const p;
  S *a, *k, *q, *b, *e, *d_a, *d_k, *d_q, *d_b, *d_e, *c, *d_c, *old, *v;

  Stretch(int64_t T, int64_t B, int64_t most, S* const* p)
      : memory(allocate(most * (10 * WIDTH + 2 * VALUES + 2 * BAND))), T(T), B(B), most(most), p(p) {
    S* free = memory;
    for (S** vectors : {&a, &k, &q, &b, &e, &d_a, &d_k, &d_q, &d_b, &d_e}) {
      *vectors = free;
      free += most * WIDTH;
    }
    c = free;
    d_c = c + most * VALUES;
    old = d_c + most * VALUES;
    v = old + most * BAND;
    std::memset(memory, 0, most * (10 * WIDTH) * sizeof(S));
  }
  ~Stretch() { std::free(memory); }

  Step at(int64_t m) const {
    int64_t n = m * WIDTH;
    return {a + n, k + n, q + n, b + n, e + n, d_a + n, d_k + n, d_q + n, d_b + n, d_e + n};
  }
  bool anew(int64_t t, int64_t r) const {
    return p[ANEW] && reinterpret_cast<const uint8_t*>(p[ANEW])[t * B + r];
  }
  S* kept(int64_t start, int64_t r) const { return p[KEPT] + (start / most * B + r) * STATE; }

  // Copy what steps [start, stop) of sequence r take.
  void take(int64_t start, int64_t stop, int64_t r) const {
    for (int64_t t = start; t < stop; ++t) {
      int64_t row = t * B + r, m = t - start, n = m * WIDTH;
      std::memcpy(k + n, p[KEY] + row * KEYS, KEYS * sizeof(S));
      std::memcpy(q + n, p[QUERY] + row * KEYS, KEYS * sizeof(S));
      if (DECAY == VECTOR) std::memcpy(a + n, p[A] + row * KEYS, KEYS * sizeof(S));
      for (int64_t i = 0; DECAY == NUMBER && i < KEYS; ++i) a[n + i] = p[A][row];
      if (DELTA) std::memcpy(b + n, p[BEFORE] + row * KEYS, KEYS * sizeof(S));
      if (APART) std::memcpy(e + n, p[E] + row * KEYS, KEYS * sizeof(S));
      for (int64_t j = 0; DELTA && j < VALUES; ++j) c[m * VALUES + j] = p[C][SINGLE ? row : row * VALUES + j];
    }
  }

  // Write the gradients of what these steps took.
  void give(int64_t start, int64_t stop, int64_t r) const {
    for (int64_t t = start; t < stop; ++t) {
      int64_t row = t * B + r, m = t - start, n = m * WIDTH;
      std::memcpy(p[D_KEY] + row * KEYS, d_k + n, KEYS * sizeof(S));
      std::memcpy(p[D_QUERY] + row * KEYS, d_q + n, KEYS * sizeof(S));
      if (DECAY == VECTOR) std::memcpy(p[D_A] + row * KEYS, d_a + n, KEYS * sizeof(S));
      if (DECAY == NUMBER) p[D_A][row] = sum(d_a + n, KEYS);
      if (DELTA) std::memcpy(p[D_BEFORE] + row * KEYS, d_b + n, KEYS * sizeof(S));
      if (APART) std::memcpy(p[D_E] + row * KEYS, d_e + n, KEYS * sizeof(S));
      if (DELTA && SINGLE) p[D_C][row] = sum(d_c + m * VALUES, VALUES);
      if (DELTA && !SINGLE) std::memcpy(p[D_C] + row * VALUES, d_c + m * VALUES, VALUES * sizeof(S));
    }
    std::memset(d_a, 0, 5 * most * WIDTH * sizeof(S));
  }

  // Past a sequence's end nothing has a gradient.
  void give_nothing(int64_t start, int64_t r) const {
    for (int64_t t = start; t < T; ++t) {
      int64_t row = t * B + r;
      std::memset(p[D_KEY] + row * KEYS, 0, KEYS * sizeof(S));
      std::memset(p[D_QUERY] + row * KEYS, 0, KEYS * sizeof(S));
      std::memset(p[D_P] + row * VALUES, 0, VALUES * sizeof(S));
      if (DECAY != FIXED) std::memset(p[D_A] + row * (DECAY == VECTOR ? KEYS : 1), 0, (DECAY == VECTOR ? KEYS : 1) * sizeof(S));
      if (DELTA) std::memset(p[D_BEFORE] + row * KEYS, 0, KEYS * sizeof(S));
      if (APART) std::memset(p[D_E] + row * KEYS, 0, KEYS * sizeof(S));
      if (DELTA) std::memset(p[D_C] + row * (SINGLE ? 1 : VALUES), 0, (SINGLE ? 1 : VALUES) * sizeof(S));
    }
  }

  static S sum(const S* numbers, int64_t count) {
    S found = 0;
#pragma omp simd reduction(+ : found)
    for (int64_t i = 0; i < count; ++i) found += numbers[i];
    return found;
  }
};

inline int64_t least(int64_t x, int64_t y) { return x < y ? x : y; }

void forward(int64_t T, int64_t B, int64_t threads, int64_t most, const int64_t* lengths, S* const* p, bool saving) {
#pragma omp parallel num_threads(threads)
  {
    Stretch w(T, B, most, p);
    S* state = allocate(STATE);
#pragma omp for schedule(dynamic, 1)
    for (int64_t r = 0; r < B; ++r) {
      const int64_t end = lengths ? least(lengths[r], T) : T;
      fetch(p[INITIAL] + r * KEYS * VALUES, state);
      for (int64_t start = 0; start < end; start += most) {
        const int64_t stop = least(start + most, end);
        if (saving) std::memcpy(w.kept(start, r), state, STATE * sizeof(S));
        w.take(start, stop, r);
        for (int64_t first = 0; first < VALUES; first += BAND) {
          const int64_t rows = least(BAND, VALUES - first);
          S* band = state + first * WIDTH;
          for (int64_t t = start; t < stop; ++t) {
            const int64_t m = t - start, row = (t * B + r) * VALUES + first;
            if (w.anew(t, r)) std::memset(band, 0, rows * WIDTH * sizeof(S));
            advance(rows, band, band, w.at(m), p[P] + row, w.c + m * VALUES + first, w.old, w.v, p[OUT] + row);
          }
        }
      }
      // past the end stands what was read last, which a readout can take
      for (int64_t t = end; t < T; ++t) {
        S* to = p[OUT] + (t * B + r) * VALUES;
        if (end) std::memcpy(to, p[OUT] + ((end - 1) * B + r) * VALUES, VALUES * sizeof(S));
        else std::memset(to, 0, VALUES * sizeof(S));
      }
      put(state, p[FINAL] + r * KEYS * VALUES);
    }
    std::free(state);
  }
}

}  // namespace

extern "C" void recur(int64_t T, int64_t B, int64_t threads, int64_t most, const int64_t* lengths, S* const* p) {
  forward(T, B, threads, most, lengths, p, false);
}

extern "C" void step(int64_t T, int64_t B, int64_t threads, int64_t most, const int64_t* lengths, S* const* p) {
  forward(T, B, threads, most, lengths, p, true);
}

extern "C" void back(int64_t T, int64_t B, int64_t threads, int64_t most, const int64_t* lengths, S* const* p) {
#pragma omp parallel num_threads(threads)
  {
    Stretch w(T, B, most, p);
    S *gradient = allocate(STATE), *states = allocate((most + 2) * BAND * WIDTH);
    S* const nothing = states + (most + 1) * BAND * WIDTH;
    std::memset(nothing, 0, BAND * WIDTH * sizeof(S));
    auto before = [&](int64_t t, int64_t m, int64_t r) { return w.anew(t, r) ? nothing : states + m * BAND * WIDTH; };
#pragma omp for schedule(dynamic, 1)
    for (int64_t r = 0; r < B; ++r) {
      const int64_t end = lengths ? least(lengths[r], T) : T;
      fetch(p[D_FINAL] ? p[D_FINAL] + r * KEYS * VALUES : nullptr, gradient);
      w.give_nothing(end, r);
      for (int64_t start = (end + most - 1) / most * most - most; start >= 0; start -= most) {
        const int64_t stop = least(start + most, end);
        w.take(start, stop, r);
        for (int64_t first = 0; first < VALUES; first += BAND) {
          const int64_t rows = least(BAND, VALUES - first);
          std::memcpy(states, w.kept(start, r) + first * WIDTH, rows * WIDTH * sizeof(S));
          for (int64_t t = start; t < stop; ++t) {
            const int64_t m = t - start;
            S* to = states + (m + 1) * BAND * WIDTH;
            advance(rows, before(t, m, r), to, w.at(m), p[P] + (t * B + r) * VALUES + first,
                    w.c + m * VALUES + first, w.old + m * BAND, w.v + m * BAND, nullptr);
          }
          for (int64_t t = stop - 1; t >= start; --t) {
            const int64_t m = t - start, row = (t * B + r) * VALUES + first;
            const S* to = states + (m + 1) * BAND * WIDTH;
            S* g = gradient + first * WIDTH;
            retreat(rows, before(t, m, r), to, g, w.at(m), w.c + m * VALUES + first, w.old + m * BAND,
                    w.v + m * BAND, p[D_OUT] + row, p[D_P] + row, w.d_c + m * VALUES + first);
            if (w.anew(t, r)) std::memset(g, 0, rows * WIDTH * sizeof(S));
          }
        }
        w.give(start, stop, r);
      }
      put(gradient, p[D_INITIAL] + r * KEYS * VALUES);
    }
    std::free(states);
    std::free(gradient);
  }
}
