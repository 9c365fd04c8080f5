// Products of int8 codes with scales by row and group of channels, by AMX or by AVX-512 VNNI: see qdit/quant/native.py.
//
// qdit/quant/integers.py has the formula. Every element sees the same operations in the same order as there (sums of
// integers are exact, and torch's addcmul is a fused multiply-add), so that the bits are the same whatever made them.
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

constexpr long COLUMNS = 32;  // of a tile of the output
constexpr long CHUNK = 96;    // rows whose codes stay in the second cache while all columns pass
constexpr uint32_t SHIFT = 0x80808080u;

struct Product {
    long rows, out, channels, groups, wide;    // wide: `out` rounded up to whole tiles
    const int8_t* x;                           // [rows, channels]
    const float *x_scale, *x_offset;           // [rows, groups]; no offsets: null
    const int8_t* weight;                      // [wide / 32, channels / 4, 32, 4], or of half the bytes: see `unpack`
    const int8_t* lowest;                      // [groups, wide]: of packed codes; null where they are not packed
    const float *w_scale, *w_offset, *w_sums;  // [groups, wide]; no offsets: null
    const float* bias;                         // [wide]
    float* y;                                  // [rows, out]
    long part() const { return channels / groups; }
};

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

int32_t summed(const int8_t* codes, long count) {
    int32_t sum = 0;
    for (long i = 0; i < count; i++) sum += codes[i];
    return sum;
}

// total += scales (sums - corrections) of one group, for `count` rows from `row` on and the columns of a tile. `x_sums`
// [count, groups] are those of the rows' codes, null where the weight has no offsets.
void add_group(const Product& p, const int32_t* sums, const float* x_sums, long row, long count, long column,
               long group, float* total) {
    const long at = group * p.wide + column;
    for (long r = 0; r < count; r++) {
        const long mine = (row + r) * p.groups + group;
        const __m512 scale = _mm512_set1_ps(p.x_scale[mine]);
        const float offset = p.x_offset ? p.x_offset[mine] : 0.0f;
        float theirs = x_sums ? x_sums[r * p.groups + group] : 0.0f;
        if (x_sums && p.x_offset) theirs -= p.part() * offset;
        for (long v = 0; v < COLUMNS; v += 16) {
            __m512 s = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums + r * COLUMNS + v));
            if (p.x_offset) s = _mm512_fnmadd_ps(_mm512_set1_ps(offset), _mm512_loadu_ps(p.w_sums + at + v), s);
            if (x_sums) s = _mm512_fnmadd_ps(_mm512_set1_ps(theirs), _mm512_loadu_ps(p.w_offset + at + v), s);
            float* here = total + r * COLUMNS + v;
            s = _mm512_mul_ps(s, scale);
            _mm512_storeu_ps(here, _mm512_fmadd_ps(s, _mm512_loadu_ps(p.w_scale + at + v), _mm512_loadu_ps(here)));
        }
    }
}

void begin(const Product& p, long column, long count, float* total) {
    for (long r = 0; r < count; r++) std::memcpy(total + r * COLUMNS, p.bias + column, COLUMNS * sizeof(float));
}

void finish(const Product& p, const float* total, long row, long count, long column) {
    const long left = std::min(COLUMNS, p.out - column);
    for (long r = 0; r < count; r++)
        std::memcpy(p.y + (row + r) * p.out + column, total + r * COLUMNS, left * sizeof(float));
}

// AVX-512 VNNI multiplies unsigned by signed codes: those of the input are shifted by 128.
struct Vnni {
    static constexpr long ROWS = 12;
    const Product& p;
    std::vector<uint32_t> codes;  // of a chunk: [tiles, channels / 4, rows of the tile, 4]

    explicit Vnni(const Product& p) : p(p), codes(CHUNK * p.channels / 4) {}

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
        begin(p, column, count, total);
        for (long g = 0; g < p.groups; g++) {
            const uint32_t* a = codes.data() + row * (p.channels / 4) + g * (part / 4) * count;
            const int8_t* b = panel + g * part * COLUMNS;
            SUMS[count - 1](a, b, part, p.w_sums + g * p.wide + column, found);
            add_group(p, found, x_sums, first + row, count, column, g, total);
        }
        finish(p, total, first + row, count, column);
    }
};

#ifdef __AMX_INT8__
// AMX multiplies signed codes, 64 channels at once.
struct Amx {
    static constexpr long ROWS = 32, DEEP = 64;
    const Product& p;
    std::vector<int8_t> codes;  // of a chunk, with rows of zeros behind it

    static bool fits(const Product& p) {
        constexpr long REQUEST = 0x1023, TILES = 18;  // ARCH_REQ_XCOMP_PERM, of the system's arch_prctl
        static const bool allowed = syscall(SYS_arch_prctl, REQUEST, TILES) == 0;
        return allowed && p.part() % DEEP == 0;
    }

    explicit Amx(const Product& p) : p(p), codes((CHUNK + ROWS) * p.channels) {
        alignas(64) uint8_t config[64] = {1};
        for (int tile = 0; tile < 8; tile++) config[16 + 2 * tile] = 64, config[48 + tile] = 16;
        _tile_loadconfig(config);
    }
    ~Amx() { _tile_release(); }

    void read(long first, long count) {
        std::memcpy(codes.data(), p.x + first * p.channels, count * p.channels);
        std::atomic_signal_fence(std::memory_order_seq_cst);  // as in `unpack`
    }

    void tile(const int8_t* panel, const float* x_sums, long first, long row, long count, long column) {
        alignas(64) float total[ROWS * COLUMNS];
        alignas(64) int32_t found[ROWS * COLUMNS];
        const int8_t *a = codes.data() + row * p.channels, *b = panel;
        const long line = 4 * COLUMNS, row_bytes = COLUMNS * sizeof(int32_t);
        begin(p, column, count, total);
        for (long g = 0; g < p.groups; g++) {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            for (long k = 0; k < p.part(); k += DEEP, a += DEEP, b += DEEP * COLUMNS) {
                _tile_loadd(4, a, p.channels);
                _tile_loadd(5, a + 16 * p.channels, p.channels);
                _tile_loadd(6, b, line);
                _tile_loadd(7, b + 64, line);
                _tile_dpbssd(0, 4, 6);
                _tile_dpbssd(1, 4, 7);
                _tile_dpbssd(2, 5, 6);
                _tile_dpbssd(3, 5, 7);
            }
            _tile_stored(0, found, row_bytes);
            _tile_stored(1, found + 16, row_bytes);
            _tile_stored(2, found + 16 * COLUMNS, row_bytes);
            _tile_stored(3, found + 16 * COLUMNS + 16, row_bytes);
            add_group(p, found, x_sums, first + row, count, column, g, total);
        }
        finish(p, total, first + row, count, column);
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
    const long chunk = std::clamp((p.rows + threads - 1) / threads, 1L, CHUNK);
    const long chunks = (p.rows + chunk - 1) / chunk;
    spread(chunks, threads, [&p, chunk](long from, long to) {
        Kernel kernel(p);
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

inline __mmask16 mask(long left) { return left >= 16 ? 0xffff : (1u << left) - 1; }

}  // namespace

extern "C" void qdit_product(const Product* p, long threads) {
#ifdef __AMX_INT8__
    if (Amx::fits(*p)) return multiply<Amx>(*p, threads);
#endif
    multiply<Vnni>(*p, threads);
}

// The least and the greatest value of each row [rows, length]; of a row with a NaN, NaN.
extern "C" void qdit_extremes(const float* x, float* low, float* high, long rows, long length, long threads) {
    spread(rows, threads, [=](long from, long to) {
        for (long row = from; row < to; row++) {
            __m512 least = _mm512_set1_ps(INFINITY), greatest = _mm512_set1_ps(-INFINITY);
            __mmask16 unknown = 0;
            for (long k = 0; k < length; k += 16) {
                const __mmask16 here = mask(length - k);
                const __m512 some = _mm512_maskz_loadu_ps(here, x + row * length + k);
                least = _mm512_mask_min_ps(least, here, least, some);
                greatest = _mm512_mask_max_ps(greatest, here, greatest, some);
                unknown |= _mm512_cmp_ps_mask(some, some, _CMP_UNORD_Q);
            }
            low[row] = unknown ? NAN : _mm512_reduce_min_ps(least);
            high[row] = unknown ? NAN : _mm512_reduce_max_ps(greatest);
        }
    });
}

struct Codes {
    long rows, length;
    long each;  // 1 if every row has a scale and a zero point of its own, 0 if all have the first
    long lowest, highest, shift;
    const float *x, *scale, *zero_point;
    int8_t* codes;  // [rows, length]: clamp(round(x / scale) + zero point), less `shift`; if that is -1, the zero point
};

extern "C" void qdit_encode(const Codes* c, long threads) {
    const __m512 lowest = _mm512_set1_ps(c->lowest), highest = _mm512_set1_ps(c->highest);
    spread(c->rows, threads, [=](long from, long to) {
        for (long row = from; row < to; row++) {
            const __m512 scale = _mm512_set1_ps(c->scale[row * c->each]);
            const __m512 zero = _mm512_set1_ps(c->zero_point[row * c->each]);
            const __m512 less = c->shift < 0 ? zero : _mm512_set1_ps(c->shift);
            for (long k = 0; k < c->length; k += 16) {
                const __mmask16 here = mask(c->length - k);
                const long at = row * c->length + k;
                __m512 y = _mm512_div_ps(_mm512_maskz_loadu_ps(here, c->x + at), scale);
                y = _mm512_add_ps(_mm512_roundscale_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), zero);
                y = _mm512_sub_ps(_mm512_min_ps(_mm512_max_ps(y, lowest), highest), less);
                _mm512_mask_cvtepi32_storeu_epi8(c->codes + at, here, _mm512_cvtps_epi32(y));
            }
        }
    });
}
