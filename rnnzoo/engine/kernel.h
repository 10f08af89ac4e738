// What every generated kernel stands on: functions of one number that compilers can vectorise, and products of a few
// rows with a packed matrix. The generated code defines S (float or double) before this file.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

// A call that is left in a loop keeps it from being vectorised.
#define INLINE inline __attribute__((always_inline))

namespace {

#if defined(__AVX512F__)
constexpr int BYTES = 64, TILE_ROWS = 6, TILE_VECTORS = 4;
#elif defined(__AVX__)
constexpr int BYTES = 32, TILE_ROWS = 6, TILE_VECTORS = 2;
#else
constexpr int BYTES = 16, TILE_ROWS = 6, TILE_VECTORS = 4;
#endif
constexpr int LANES = BYTES / sizeof(S);
constexpr int PANEL = TILE_VECTORS * LANES;

typedef S vec __attribute__((vector_size(BYTES)));
typedef S unaligned __attribute__((vector_size(BYTES), aligned(sizeof(S)), may_alias));

constexpr int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

inline S* allocate(int64_t numbers) {
  int64_t bytes = (numbers * sizeof(S) + BYTES - 1) / BYTES * BYTES;
  return static_cast<S*>(aligned_alloc(BYTES, bytes ? bytes : BYTES));
}

// exp(x) = 2^n (1 + p) with n = round(x / ln 2) and p = exp(r) - 1, |r| <= ln(2) / 2, to within 3e-9 exp(r): the
// polynomial of its form whose greatest error is least.
struct Parts { float half, p; };  // half of 2^n, which does not overflow before the result does

INLINE Parts exponential(float x) {
  const float shift = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer and leaves that in the last bits
  float shifted = x * 1.44269504f + shift;
  float n = shifted - shift;
  float r = x - n * 0.693145752f - n * 1.42860677e-6f;
  float p = r + r * r * (0.49999994f + r * (0.16666521f + r * (0.04166839f + r * (0.00836875f + r * 0.00138145f))));
  uint32_t bits;
  std::memcpy(&bits, &shifted, 4);
  bits = (bits << 23) + 0x3f000000u;
  float half;
  std::memcpy(&half, &bits, 4);
  return {half, p};
}

// Two conditions, one after the other: one within the other would make three cases of all that follows.
INLINE float within(float x, float low, float high) {
  float y = low > x ? low : x;
  return high < y ? high : y;
}

INLINE float exp_(float x) {
  Parts e = exponential(within(x, -86.9f, 89.f));
  return x < -86.9f ? 0.f : (e.half + e.half * e.p) * 2.f;
}
INLINE float expm1_(float x) {
  Parts e = exponential(within(x, -80.f, 80.f));
  float scale = 2.f * e.half, y = std::copysign(scale * e.p + (scale - 1.f), x);  // the sum loses a zero's sign
  return x > 80.f ? exp_(x) : y;
}
INLINE float sigmoid_(float x) {
  Parts e = exponential(within(-x, -87.f, 87.3f));
  float y = 1.f / (1.f + 2.f * (e.half + e.half * e.p));
  return x < -87.3f ? 0.f : y;
}
INLINE float tanh_(float x) {
  Parts e = exponential(within(2.f * x, -40.f, 40.f));
  float scale = 2.f * e.half, y = scale * e.p + (scale - 1.f);
  return std::copysign(y / (y + 2.f), x);
}

// x = 2^n m with m around 1, and log m = 2 artanh((m - 1) / (m + 1)) by its series.
INLINE float log_(float x) {
  bool small = x < 1.1754944e-38f;  // what is too small to be normal is made larger
  float scaled = small ? x * 8388608.f : x;
  uint32_t bits;
  std::memcpy(&bits, &scaled, 4);
  int32_t n = static_cast<int32_t>(bits - 0x3f3504f3u) >> 23;  // 0x3f3504f3 is sqrt(1 / 2)
  bits -= static_cast<uint32_t>(n) << 23;
  float m;
  std::memcpy(&m, &bits, 4);
  float s = (m - 1.f) / (m + 1.f), z = s * s, e = small ? n - 23 : n;
  float y = 2.f * s + s * z * (2.f / 3 + z * (2.f / 5 + z * (2.f / 7 + z * (2.f / 9 + z * 2.f / 11))));
  y = e * 0.693145752f + (y + e * 1.42860677e-6f);
  y = x == 0.f ? -INFINITY : y;
  y = x > 3.4028235e38f || x != x ? x : y;
  return x < 0.f ? NAN : y;
}
INLINE float log1p_(float x) {
  float u = 1.f + x, lost = u - 1.f - x;  // what rounding added
  float y = log_(u);
  lost = u > 3e38f || u <= 0.f ? 0.f : lost / u;
  return std::copysign(y - lost, x);  // the difference loses a zero's sign
}

// x = n pi / 2 + r, |r| <= pi / 4, and the series of sine and cosine around zero; good for |x| up to 1e5.
INLINE float wave(float x, int shift) {
  float n = std::floor(x * 0.636619772f + 0.5f);
  float r = x - n * 1.5703125f - n * 4.83751297e-4f - n * 7.54978942e-8f, z = r * r;
  float sine = r + r * z * (-1.f / 6 + z * (1.f / 120 + z * (-1.f / 5040 + z / 362880)));
  float cosine = 1.f + z * (-0.5f + z * (1.f / 24 + z * (-1.f / 720 + z / 40320)));
  int quarter = static_cast<int>(n) + shift;
  float y = quarter & 1 ? cosine : sine;
  return quarter & 2 ? -y : y;
}
INLINE bool far(float x) { return std::abs(x) > 1e5f; }
INLINE bool far(double x) { return false; }
INLINE float sin_(float x) { return x == 0.f ? x : wave(x, 0); }
INLINE float cos_(float x) { return wave(x, 1); }

// What is left of a in units of b, with the sign of a (fmod) or of b (remainder). The quotient of numbers that are not
// too far apart is right to one, and what is left by it exact.
INLINE S fmod_(S a, S b) {
  S size = std::abs(b), left = std::fma(-std::trunc(a / b), b, a), low = left + size, high = left - size;
  S up = left < 0 ? low : left >= size ? high : left, down = left > 0 ? high : left <= -size ? low : left;
  return std::copysign(a < 0 ? down : up, a);
}
INLINE S signed_(S left, S b) { return left != 0 && (b < 0) != (left < 0) ? left + b : left; }
INLINE S remainder_(S a, S b) { return signed_(fmod_(a, b), b); }
INLINE bool apart(S a, S b) { return !(std::abs(a / b) < S(1 << 22)) || !(std::abs(b) < S(INFINITY)); }

// OpenMP's own may begin at a finite number.
INLINE S largest_(S a, S b) { return b > a ? b : a; }
INLINE S smallest_(S a, S b) { return b < a ? b : a; }
#pragma omp declare reduction(largest : S : omp_out = largest_(omp_out, omp_in)) initializer(omp_priv = omp_orig)
#pragma omp declare reduction(smallest : S : omp_out = smallest_(omp_out, omp_in)) initializer(omp_priv = omp_orig)

INLINE double log_(double x) { return std::log(x); }
INLINE double log1p_(double x) { return std::log1p(x); }
INLINE double sin_(double x) { return std::sin(x); }
INLINE double cos_(double x) { return std::cos(x); }
INLINE double exp_(double x) { return std::exp(x); }
INLINE double expm1_(double x) { return std::expm1(x); }
INLINE double sigmoid_(double x) { return 1. / (1. + std::exp(-x)); }
INLINE double tanh_(double x) { return std::tanh(x); }

// b [K, N] with any strides -> panels of PANEL columns, in each row after row, the last one filled up with zeros.
inline void pack(const S* b, int64_t K, int64_t N, int64_t down, int64_t right, S* to) {
#pragma omp for schedule(static)
  for (int64_t first = 0; first < N; first += PANEL) {
    int64_t width = padded(N - first < PANEL ? N - first : PANEL);
    S* panel = to + first * K;
    for (int64_t k = 0; k < K; ++k)
      for (int64_t j = 0; j < width; ++j)
        panel[k * width + j] = first + j < N ? b[k * down + (first + j) * right] : S(0);
  }
}

template <int ROWS, int VECTORS>
inline void tile(const S* a, int64_t lda, const S* panel, int64_t K, S* c, int64_t ldc) {
  vec sum[ROWS][VECTORS] = {};
  for (int64_t k = 0; k < K; ++k) {
    vec b[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) b[v] = *(const vec*)(panel + (k * VECTORS + v) * LANES);
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) sum[m][v] += a[m * lda + k] * b[v];
  }
#pragma GCC unroll 8
  for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) *(unaligned*)(c + m * ldc + v * LANES) = sum[m][v];
}

template <int VECTORS>
inline void tiles(int64_t rows, const S* a, int64_t lda, const S* panel, int64_t K, S* c, int64_t ldc) {
  int64_t m = 0;
  for (; m + TILE_ROWS <= rows; m += TILE_ROWS) tile<TILE_ROWS, VECTORS>(a + m * lda, lda, panel, K, c + m * ldc, ldc);
  a += m * lda;
  c += m * ldc;
  switch (rows - m) {
    case 5: return tile<5, VECTORS>(a, lda, panel, K, c, ldc);
    case 4: return tile<4, VECTORS>(a, lda, panel, K, c, ldc);
    case 3: return tile<3, VECTORS>(a, lda, panel, K, c, ldc);
    case 2: return tile<2, VECTORS>(a, lda, panel, K, c, ldc);
    case 1: return tile<1, VECTORS>(a, lda, panel, K, c, ldc);
  }
}

// c [rows, padded(N)] = a [rows, K] @ b [K, N], b packed. N is known beforehand, so that only the tiles that it takes are
// compiled: all of them would be half of a compiler's work.
template <int64_t N>
void product(int64_t rows, const S* a, int64_t lda, const S* b, int64_t K, S* c, int64_t ldc) {
  constexpr int64_t whole = N / PANEL * PANEL;
  constexpr int last = (N - whole + LANES - 1) / LANES;
  for (int64_t first = 0; first < whole; first += PANEL)
    tiles<whole ? TILE_VECTORS : last>(rows, a, lda, b + first * K, K, c + first, ldc);
  if (last) tiles<last ? last : TILE_VECTORS>(rows, a, lda, b + whole * K, K, c + whole, ldc);
}

#ifdef HALF
// Products of numbers rounded to bfloat16, summed in float: oneDNN's kernels, which use a processor's matrix unit.
}  // namespace
namespace c10 { struct BFloat16; }
namespace at { namespace native { namespace cpublas {
void brgemm(int64_t M, int64_t N, int64_t K, int64_t lda, int64_t ldb, int64_t ldc, bool add,
            const c10::BFloat16* a, const c10::BFloat16* b, float* c, bool pairs);
void brgemm_release(bool pairs);
}}}  // namespace at::native::cpublas
namespace {

constexpr int64_t even(int64_t n) { return (n + 1) / 2 * 2; }

inline uint16_t half(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to the nearest, ties to even
  return x != x ? 0x7fc0 : rounded;
}

// b [K, N] with any strides -> [even(K) / 2, N, 2]
inline void pack_half(const S* b, int64_t K, int64_t N, int64_t down, int64_t right, S* to) {
  uint16_t* packed = reinterpret_cast<uint16_t*>(to);
#pragma omp for schedule(static)
  for (int64_t k = 0; k < even(K); ++k)
    for (int64_t j = 0; j < N; ++j)
      packed[(k / 2 * N + j) * 2 + k % 2] = k < K ? half(b[k * down + j * right]) : 0;
}

[[maybe_unused]] void product_half(
    int64_t rows, const S* a, int64_t lda, const S* b, int64_t K, int64_t N, S* c, int64_t ldc, S* buffer) {
  uint16_t* halves = reinterpret_cast<uint16_t*>(buffer);
  for (int64_t m = 0; m < rows; ++m) {
#pragma omp simd
    for (int64_t k = 0; k < K; ++k) halves[m * even(K) + k] = half(a[m * lda + k]);
    if (K % 2) halves[m * even(K) + K] = 0;
  }
  at::native::cpublas::brgemm(rows, N, even(K), even(K), N, ldc, false, reinterpret_cast<c10::BFloat16*>(halves),
                              reinterpret_cast<const c10::BFloat16*>(b), c, true);
}
#define PACK pack_half
#define PRODUCT(rows, a, lda, b, K, N, c) product_half(rows, a, lda, b, K, N, c, padded(N), halves)
#define RELEASE at::native::cpublas::brgemm_release(true)
#else
#define PACK pack
#define PRODUCT(rows, a, lda, b, K, N, c) product<N>(rows, a, lda, b, K, c, padded(N))
#define RELEASE (void)0
#endif

// c [rows, N] = what a product left in b [rows, padded(N)].
[[maybe_unused]] void unpad(int64_t rows, int64_t N, const S* b, S* c) {
  for (int64_t r = 0; r < rows; ++r) std::memcpy(c + r * N, b + r * padded(N), N * sizeof(S));
}

// Past a sequence's end: rows keep what they hold.
[[maybe_unused]] void hold(int64_t rows, int64_t n, const int64_t* lengths, int64_t t, const S* from, S* to) {
  for (int64_t r = 0; r < rows; ++r)
    if (t >= lengths[r]) std::memcpy(to + r * n, from + r * n, n * sizeof(S));
}

[[maybe_unused]] void clear(int64_t rows, int64_t n, const int64_t* lengths, int64_t t, S* what) {
  for (int64_t r = 0; r < rows; ++r)
    if (t >= lengths[r]) std::memset(what + r * n, 0, n * sizeof(S));
}

[[maybe_unused]] void add(int64_t numbers, const S* what, S* to) {
#pragma omp simd
  for (int64_t j = 0; j < numbers; ++j) to[j] += what[j];
}

}  // namespace
