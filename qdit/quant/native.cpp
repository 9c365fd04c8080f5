// Codes of inputs, and products of int8 codes with scales by row and group of channels, by AMX or by AVX-512 VNNI: see
// qdit/quant/native.py. Inputs and outputs are float32 or bfloat16, between which all is float32.
//
// qdit/quant/integers.py has the formula of products, qdit/quant/affine.py that of grids. Every element sees the same
// operations in the same order as there (sums of integers are exact, and torch's addcmul is a fused multiply-add), so
// that the bits are the same whatever made them; but outputs in bfloat16 below 1.2e-38, which the processor rounds to
// zero.
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#ifndef __AVX512VNNI__
#error "this processor has no AVX-512 VNNI"
#endif

namespace {

constexpr long COLUMNS = 32;                        // of a tile of the output
constexpr long CHUNK = 96, CHUNK_BYTES = 1L << 20;  // rows whose codes stay in the second cache while all columns pass
constexpr uint32_t SHIFT = 0x80808080u;

struct Product {
    long rows, out, channels, groups, wide;  // groups: in which both sides have one scale; wide: `out` in whole tiles
    long x_groups, x_each;                   // scales in a row of x; x_each: 1 if every row has its own, 0 if all share
    long half;                               // 1: y is bfloat16
    const int8_t* x;                         // [rows, channels]
    const float *x_scale, *x_offset;         // [rows or 1, x_groups]; no offsets: null
    const int8_t* weight;                    // [wide / 32, channels / 4, 32, 4], or of half the bytes: see `unpack`
    const int8_t* lowest;                    // [groups, wide]: of packed codes; null where they are not packed
    const float *w_scale, *w_offset, *w_sums;  // [groups, wide]; no offsets: null
    const float* bias;                         // [out], or null
    void* y;                                   // [rows, out]
    long part() const { return channels / groups; }
    long x_at(long row, long group) const { return row * x_each * x_groups + group * x_groups / groups; }
};

inline __mmask16 mask(long left) { return left >= 16 ? 0xffff : left <= 0 ? 0 : (1u << left) - 1; }

// Sixteen numbers from a place on, as float32.
inline __m512 load(const float* x, __mmask16 which) { return _mm512_maskz_loadu_ps(which, x); }
inline __m512 load(const uint16_t* x, __mmask16 which) {
    const __m512i bits = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(_mm512_maskz_loadu_epi16(which, x)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}

// Two vectors as bfloat16, to nearest, half to even.
inline __m512i halves(__m512 first, __m512 second) {
#ifdef __AVX512BF16__
    return (__m512i)_mm512_cvtne2ps_pbh(second, first);
#else
    const auto half = [](__m512 x) {
        const __m512i bits = _mm512_castps_si512(x), one = _mm512_set1_epi32(1);
        const __m512i last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
        const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, last), _mm512_set1_epi32(0x7fff));
        const __mmask16 unknown = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
        const __m512i made = _mm512_mask_mov_epi32(up, unknown, _mm512_set1_epi32(0x7fc00000));
        return _mm512_cvtepi32_epi16(_mm512_srli_epi32(made, 16));
    };
    return _mm512_inserti64x4(_mm512_castsi256_si512(half(first)), half(second), 1);
#endif
}

// The codes of the columns of a tile, [channels / 4, 32, 4], of two a byte, [channels / 4, 16, 4]: the first half of the
// columns in the low four bits, the second half in the high ones, each less the lowest code of its group.
void unpack(const Product& p, long column, int8_t* codes) {
    const __m512i four = _mm512_set1_epi8(15), repeat = _mm512_set1_epi32(0x01010101), byte = _mm512_set1_epi32(255);
    const int8_t* from = p.weight + column * p.channels / 2;
    for (long g = 0; g < p.groups; g++) {
        __m512i lowest[2];
        for (int half = 0; half < 2; half++) {
            const auto* here = reinterpret_cast<const __m128i*>(p.lowest + g * p.wide + column + 16 * half);
            const __m512i wide = _mm512_and_si512(_mm512_cvtepi8_epi32(_mm_loadu_si128(here)), byte);
            lowest[half] = _mm512_mullo_epi32(wide, repeat);
        }
        for (long k = 0; k < p.part(); k += 4, from += 64, codes += 128) {
            const __m512i both = _mm512_loadu_si512(from);
            const __m512i first = _mm512_and_si512(both, four);
            const __m512i second = _mm512_and_si512(_mm512_srli_epi16(both, 4), four);
            _mm512_storeu_si512(codes, _mm512_add_epi8(first, lowest[0]));
            _mm512_storeu_si512(codes + 64, _mm512_add_epi8(second, lowest[1]));
        }
    }
    std::atomic_signal_fence(std::memory_order_seq_cst);  // compilers do not know that loads of tiles read it
}

float summed(const int8_t* codes, long count) {
    __m512i sum = _mm512_setzero_si512();
    const __m512i ones = _mm512_set1_epi8(1);
    for (long i = 0; i < count; i += 64) {
        const __mmask64 here = count - i >= 64 ? ~0ull : (1ull << (count - i)) - 1;
        sum = _mm512_dpbusd_epi32(sum, ones, _mm512_maskz_loadu_epi8(here, codes + i));
    }
    return _mm512_reduce_add_epi32(sum);
}

// Two vectors of a row of the output.
inline void put(const Product& p, long row, long column, __m512 first, __m512 second) {
    const long left = p.out - column, at = row * p.out + column;
    if (p.half) {
        const __mmask32 here = left >= COLUMNS ? ~0u : (1u << left) - 1;
        _mm512_mask_storeu_epi16(static_cast<uint16_t*>(p.y) + at, here, halves(first, second));
    } else {
        _mm512_mask_storeu_ps(static_cast<float*>(p.y) + at, mask(left), first);
        _mm512_mask_storeu_ps(static_cast<float*>(p.y) + at + 16, mask(left - 16), second);
    }
}

// total += scales (sums - corrections) of one group, for `count` rows from `row` on and the columns of a tile; the first
// group begins with the bias, and the last one writes the output. `x_sums` [count, groups] are those of the rows' codes,
// null where the weight has no offsets.
void add_group(const Product& p, const int32_t* sums, const float* x_sums, long row, long count, long column,
               long group, float* total) {
    const long at = group * p.wide + column;
    const bool first = group == 0, last = group == p.groups - 1;
    __m512 w_scale[2], w_sums[2], w_offset[2], bias[2];
    for (int v = 0; v < 2; v++) {
        w_scale[v] = _mm512_loadu_ps(p.w_scale + at + 16 * v), w_sums[v] = _mm512_loadu_ps(p.w_sums + at + 16 * v);
        w_offset[v] = x_sums ? _mm512_loadu_ps(p.w_offset + at + 16 * v) : w_scale[v];
        const __mmask16 here = p.bias ? mask(p.out - column - 16 * v) : 0;
        bias[v] = load(p.bias + column + 16 * v, here);
    }
    for (long r = 0; r < count; r++) {
        const long mine = p.x_at(row + r, group);
        const __m512 scale = _mm512_set1_ps(p.x_scale[mine]);
        const float offset = p.x_offset ? p.x_offset[mine] : 0.0f;
        float theirs = x_sums ? x_sums[r * p.groups + group] : 0.0f;
        if (x_sums && p.x_offset) theirs -= p.part() * offset;
        float* here = total + r * COLUMNS;
        __m512 y[2];
        for (int v = 0; v < 2; v++) {
            __m512 s = _mm512_cvtepi32_ps(_mm512_load_si512(sums + r * COLUMNS + 16 * v));
            if (p.x_offset) s = _mm512_fnmadd_ps(_mm512_set1_ps(offset), w_sums[v], s);
            if (x_sums) s = _mm512_fnmadd_ps(_mm512_set1_ps(theirs), w_offset[v], s);
            s = _mm512_mul_ps(s, scale);
            y[v] = _mm512_fmadd_ps(s, w_scale[v], first ? bias[v] : _mm512_load_ps(here + 16 * v));
        }
        if (last) {
            put(p, row + r, column, y[0], y[1]);
        } else {
            _mm512_store_ps(here, y[0]), _mm512_store_ps(here + 16, y[1]);
        }
    }
}

// AVX-512 VNNI multiplies unsigned by signed codes: those of the input are shifted by 128.
struct Vnni {
    static constexpr long ROWS = 12;
    const Product& p;
    std::vector<uint32_t> codes;  // of a chunk: [tiles, channels / 4, rows of the tile, 4]

    Vnni(const Product& p, long chunk) : p(p), codes(chunk * p.channels / 4) {}

    void read(long first, long count) {
        const long fours = p.channels / 4;
        for (long row = 0; row < count; row += ROWS) {
            const long tall = std::min(ROWS, count - row);
            for (long r = 0; r < tall; r++) {
                const int8_t* from = p.x + (first + row + r) * p.channels;
                uint32_t* to = codes.data() + row * fours + r;
                for (long k = 0; k < fours; k++) {
                    uint32_t four;
                    std::memcpy(&four, from + 4 * k, 4);
                    to[k * tall] = four ^ SHIFT;
                }
            }
        }
    }

    // What the shift adds to each product is 128 times the sum of the weight's codes: it is taken off beforehand.
    static __m512i start(const float* w_sums) {
        return _mm512_mullo_epi32(_mm512_cvtps_epi32(_mm512_loadu_ps(w_sums)), _mm512_set1_epi32(-128));
    }

    template <int R>
    static void sums(const uint32_t* a, const int8_t* b, long part, const float* w_sums, int32_t* out) {
        __m512i low[R], high[R];
        low[0] = start(w_sums), high[0] = start(w_sums + 16);
#pragma GCC unroll 12
        for (int r = 1; r < R; r++) low[r] = low[0], high[r] = high[0];
#pragma GCC unroll 1
        for (long k = 0; k < part; k += 4, a += R, b += 4 * COLUMNS) {
            const __m512i b0 = _mm512_loadu_si512(b), b1 = _mm512_loadu_si512(b + 64);
#pragma GCC unroll 12
            for (int r = 0; r < R; r++) {
                const __m512i four = _mm512_set1_epi32(a[r]);
                low[r] = _mm512_dpbusd_epi32(low[r], four, b0);
                high[r] = _mm512_dpbusd_epi32(high[r], four, b1);
            }
        }
#pragma GCC unroll 12
        for (int r = 0; r < R; r++) {
            _mm512_storeu_si512(out + r * COLUMNS, low[r]);
            _mm512_storeu_si512(out + r * COLUMNS + 16, high[r]);
        }
    }

    void tile(const int8_t* panel, const float* x_sums, long first, long row, long count, long column) {
        static constexpr decltype(&sums<1>) SUMS[] = {sums<1>, sums<2>, sums<3>, sums<4>,  sums<5>,  sums<6>,
                                                     sums<7>, sums<8>, sums<9>, sums<10>, sums<11>, sums<12>};
        alignas(64) float total[ROWS * COLUMNS];
        alignas(64) int32_t found[ROWS * COLUMNS];
        const long part = p.part();
        for (long g = 0; g < p.groups; g++) {
            const uint32_t* a = codes.data() + row * (p.channels / 4) + g * (part / 4) * count;
            const int8_t* b = panel + g * part * COLUMNS;
            SUMS[count - 1](a, b, part, p.w_sums + g * p.wide + column, found);
            add_group(p, found, x_sums, first + row, count, column, g, total);
        }
    }
};

#ifdef __AMX_INT8__
// AMX multiplies signed codes, 64 channels at once.
struct Amx {
    static constexpr long ROWS = 32, DEEP = 64;
    const Product& p;
    std::vector<int8_t> codes;  // of a chunk: [tiles, channels / 64, 32, 64]

    static bool fits(const Product& p) {
        constexpr long REQUEST = 0x1023, TILES = 18;  // ARCH_REQ_XCOMP_PERM, of the system's arch_prctl
        static const bool allowed = syscall(SYS_arch_prctl, REQUEST, TILES) == 0;
        return allowed && p.part() % DEEP == 0;
    }

    Amx(const Product& p, long chunk) : p(p), codes((chunk + ROWS) * p.channels) {
        alignas(64) uint8_t config[64] = {1};
        for (int tile = 0; tile < 8; tile++) config[16 + 2 * tile] = 64, config[48 + tile] = 16;
        _tile_loadconfig(config);
    }
    ~Amx() { _tile_release(); }

    void read(long first, long count) {
        for (long r = 0; r < count; r++) {
            const int8_t* from = p.x + (first + r) * p.channels;
            int8_t* to = codes.data() + (r - r % ROWS) * p.channels + r % ROWS * DEEP;
            for (long k = 0; k < p.channels; k += DEEP, to += ROWS * DEEP)
                _mm512_storeu_si512(to, _mm512_loadu_si512(from + k));
        }
        std::atomic_signal_fence(std::memory_order_seq_cst);  // as in `unpack`
    }

    // The sums of a group are scaled while the tiles of the next one are multiplied.
    void tile(const int8_t* panel, const float* x_sums, long first, long row, long count, long column) {
        alignas(64) float total[ROWS * COLUMNS];
        alignas(64) int32_t found[2][ROWS * COLUMNS];
        const int8_t *a = codes.data() + row * p.channels, *b = panel;
        const long line = 4 * COLUMNS, row_bytes = COLUMNS * sizeof(int32_t);
        for (long g = 0; g < p.groups; g++) {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            for (long k = 0; k < p.part(); k += DEEP, a += ROWS * DEEP, b += DEEP * COLUMNS) {
                _tile_loadd(4, a, DEEP);
                _tile_loadd(6, b, line);
                _tile_loadd(7, b + 64, line);
                _tile_dpbssd(0, 4, 6);
                _tile_dpbssd(1, 4, 7);
                _tile_loadd(5, a + ROWS / 2 * DEEP, DEEP);
                _tile_dpbssd(2, 5, 6);
                _tile_dpbssd(3, 5, 7);
            }
            if (g > 0) add_group(p, found[(g - 1) % 2], x_sums, first + row, count, column, g - 1, total);
            int32_t* sums = found[g % 2];
            _tile_stored(0, sums, row_bytes);
            _tile_stored(1, sums + 16, row_bytes);
            _tile_stored(2, sums + 16 * COLUMNS, row_bytes);
            _tile_stored(3, sums + 16 * COLUMNS + 16, row_bytes);
        }
        add_group(p, found[(p.groups - 1) % 2], x_sums, first + row, count, column, p.groups - 1, total);
    }
};
#endif

// Let threads do parts of `count` pieces of work; each calls work(from, to).
template <class Work> void spread(long count, long threads, const Work& work) {
    const long each = std::max(1L, (count + threads - 1) / threads);
    std::vector<std::thread> others;
    for (long start = each; start < count; start += each)
        others.emplace_back(std::cref(work), start, std::min(start + each, count));
    work(0, std::min(each, count));
    for (auto& other : others) other.join();
}

template <class Kernel> void multiply(const Product& p, long threads) {
    const long most = std::clamp(CHUNK_BYTES / p.channels / CHUNK, 1L, 5L) * CHUNK;
    const long each = (p.rows + threads - 1) / threads;
    if (p.rows == 0) return;
    const long chunk = std::min((each + Kernel::ROWS - 1) / Kernel::ROWS * Kernel::ROWS, most);
    const long chunks = (p.rows + chunk - 1) / chunk;
    spread(chunks, threads, [&p, chunk](long from, long to) {
        Kernel kernel(p, chunk);
        std::vector<float> sums(p.w_offset ? chunk * p.groups : 0);
        std::vector<int8_t> unpacked(p.lowest ? p.channels * COLUMNS : 0);
        for (long first = from * chunk; first < std::min(to * chunk, p.rows); first += chunk) {
            const long count = std::min(chunk, p.rows - first);
            kernel.read(first, count);
            for (long i = 0; !sums.empty() && i < count * p.groups; i++)
                sums[i] = summed(p.x + first * p.channels + i * p.part(), p.part());
            for (long column = 0; column < p.wide; column += COLUMNS) {
                if (p.lowest) unpack(p, column, unpacked.data());
                const int8_t* panel = p.lowest ? unpacked.data() : p.weight + column * p.channels;
                for (long row = 0; row < count; row += Kernel::ROWS) {
                    const float* mine = sums.empty() ? nullptr : sums.data() + row * p.groups;
                    kernel.tile(panel, mine, first, row, std::min(Kernel::ROWS, count - row), column);
                }
            }
        }
    });
}

// x / scale, rounded as a division is, of fewer cycles: the remainder of an approximate quotient corrects it (P. Markstein,
// IBM J. Res. Dev. 34, 1990, theorem 8.1). Nothing may overflow, which the range of a row of its own rules out.
struct Quotient {
    __m512 step, inverse;
    bool near;
    Quotient(float scale, bool own)
        : step(_mm512_set1_ps(scale)),
          inverse(_mm512_set1_ps(1 / scale)),
          near(own && scale > 1e-30f && scale < 1e30f) {}
    __m512 operator()(__m512 x) const {
        if (!near) return _mm512_div_ps(x, step);
        const __m512 y = _mm512_mul_ps(x, inverse);
        return _mm512_fmadd_ps(_mm512_fnmadd_ps(y, step, x), inverse, y);
    }
};

// Codes of one row [length], less `less`; `own`: the grid is that of the row's values.
template <class Number>
void encode(const Number* x, int8_t* codes, long length, float scale, float zero_point, long low, long high, float less,
            bool own) {
    const Quotient over(scale, own);
    const __m512 zero = _mm512_set1_ps(zero_point), taken = _mm512_set1_ps(less);
    const __m512 lowest = _mm512_set1_ps(low), highest = _mm512_set1_ps(high);
    const auto coded = [&](__m512 some) {
        __m512 y = over(some);
        y = _mm512_add_ps(_mm512_roundscale_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), zero);
        y = _mm512_sub_ps(_mm512_min_ps(_mm512_max_ps(y, lowest), highest), taken);
        return _mm512_cvtps_epi32(y);
    };
    long k = 0;
    for (; k + 16 <= length; k += 16)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + k), _mm512_cvtepi32_epi8(coded(load(x + k, 0xffff))));
    if (k < length) _mm512_mask_cvtepi32_storeu_epi8(codes + k, mask(length - k), coded(load(x + k, mask(length - k))));
}

// The least and the greatest value of a row [length]; of one with a NaN, NaN.
template <class Number> void extremes(const Number* x, long length, float& low, float& high) {
    __m512 least = _mm512_set1_ps(INFINITY), greatest = _mm512_set1_ps(-INFINITY);
    __mmask16 unknown = 0;
    for (long k = 0; k < length; k += 16) {
        const __mmask16 here = mask(length - k);
        const __m512 some = load(x + k, here);
        least = _mm512_mask_min_ps(least, here, least, some);
        greatest = _mm512_mask_max_ps(greatest, here, greatest, some);
        unknown |= _mm512_cmp_ps_mask(some, some, _CMP_UNORD_Q);
    }
    low = unknown ? NAN : _mm512_reduce_min_ps(least);
    high = unknown ? NAN : _mm512_reduce_max_ps(greatest);
}

enum Grid { SYMMETRIC, SYMMETRIC_FULL, UNSIGNED, ASYMMETRIC, ASYMMETRIC_FREE, ASYMMETRIC_CLAMPED };
constexpr float SMALLEST_SCALE = 1e-8f, CLAMPED_SMALLEST_RANGE = 1e-5f;

inline float at_least(float x, float least) { return x < least ? least : x; }  // NaN stays

// Scale and zero point of values from `low` to `high` whose codes go from 0 to `levels` (symmetric: half of them below 0).
void cover(long grid, float low, float high, float levels, float& scale, float& zero_point) {
    const float half = (levels + 1) / 2, most = -low > high ? -low : high;
    zero_point = 0;
    if (grid == SYMMETRIC) {
        scale = at_least(most / (half - 1), SMALLEST_SCALE);
    } else if (grid == SYMMETRIC_FULL) {
        scale = at_least(2 * most / levels, SMALLEST_SCALE), zero_point = half;
    } else if (grid == UNSIGNED) {
        scale = at_least(high / levels, SMALLEST_SCALE);
    } else {
        if (grid == ASYMMETRIC) low = low > 0 ? 0 : low, high = at_least(high, 0);
        if (grid == ASYMMETRIC_CLAMPED) {
            scale = at_least(high - low, CLAMPED_SMALLEST_RANGE) / levels;
        } else {
            const bool constant = grid == ASYMMETRIC_FREE && !(high > low);
            scale = at_least(constant ? std::fabs(high) : (high - low) / levels, SMALLEST_SCALE);
        }
        zero_point = std::nearbyint(-low / scale);
        if (grid == ASYMMETRIC_CLAMPED) zero_point = std::min(at_least(zero_point, 0), levels);
    }
}

struct Codes {
    long rows, length;
    long half;                  // 1: x is bfloat16
    long grid;                  // of each row's own values; -1: scale and zero point are given
    long each;                  // 1 if every row has a scale and a zero point of its own, 0 if all have the first
    long lowest, highest, shift;
    const void* x;
    float *scale, *zero_point;  // [rows], or [1]
    int8_t* codes;  // [rows, length]: clamp(round(x / scale) + zero point), less `shift`; if that is -1, the zero point
};

template <class Number> void encode_rows(const Codes& c, long from, long to) {
    for (long row = from; row < to; row++) {
        const Number* x = static_cast<const Number*>(c.x) + row * c.length;
        float &scale = c.scale[row * c.each], &zero_point = c.zero_point[row * c.each];
        if (c.grid >= 0) {
            float low, high;
            extremes(x, c.length, low, high);
            cover(c.grid, low, high, c.highest - c.lowest, scale, zero_point);
        }
        const float less = c.shift < 0 ? zero_point : c.shift;
        encode(x, c.codes + row * c.length, c.length, scale, zero_point, c.lowest, c.highest, less, c.grid >= 0);
    }
}

}  // namespace

extern "C" void qdit_product(const Product* p, long threads) {
#ifdef __AMX_INT8__
    if (Amx::fits(*p)) return multiply<Amx>(*p, threads);
#endif
    multiply<Vnni>(*p, threads);
}

extern "C" void qdit_encode(const Codes* c, long threads) {
    spread(c->rows, threads, [c](long from, long to) {
        c->half ? encode_rows<uint16_t>(*c, from, to) : encode_rows<float>(*c, from, to);
    });
}
