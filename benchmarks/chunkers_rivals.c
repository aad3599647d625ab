/* Chunkers that were not chosen, for benchmarks/chunkers.py alone: plain C, compiled when it runs. docs/decisions/0015.
 * Each finds the first cut of data[0:size]; `average` is what the algorithm takes for one, not what comes out. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static uint64_t
load(const uint8_t *at, int bytes)
{
    uint64_t word = 0;
    memcpy(&word, at, (size_t)bytes);
    return word;
}

/* A hash of the last bytes before `end`. */
static uint64_t
mixed(const uint8_t *end, int bytes)
{
    uint64_t hash = 0;
    for (int k = 8; k <= bytes; k += 8) {
        hash = (hash + load(end - k, 8)) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 29;
    }
    return hash * 0xbf58476d1ce4e5b9u;
}

/* W8M of KERNEL.md: candidates by a 16-bit hash of 8 bytes, cuts among them by a hash of 32. */
static size_t
w8m(const uint8_t *data, size_t size, size_t minimum, size_t average)
{
    uint16_t hash = 0;
    for (size_t i = minimum - 8; i < size; i++) {
        hash = (uint16_t)(4 * hash + data[i]);
        if (i + 1 >= minimum && (int16_t)(uint16_t)(hash * 16093u) >= 32768 - 128) {
            double once = (double)average * (i + 1 < average ? 4 : 0.25) / 512;
            if ((double)mixed(data + i + 1, 32) * once < 18446744073709551615.0) {
                return i + 1;
            }
        }
    }
    return size;
}

/* AE: a cut `average` bytes behind a maximum that nothing exceeded since; of hashed values of 8 bytes. */
static size_t
ae(const uint8_t *data, size_t size, size_t minimum, size_t average)
{
    uint64_t most = 0;
    size_t place = 8;
    (void)minimum;
    for (size_t end = 8; end < size; end++) {
        uint64_t value = mixed(data + end, 8);
        if (value > most) {
            most = value;
            place = end;
        }
        else if (end >= place + average) {
            return end;
        }
    }
    return size;
}

/* RAM: the first value behind `average` bytes that is no less than all of these; of bytes, and of hashed values. */
static size_t
ram(const uint8_t *data, size_t size, size_t minimum, size_t average)
{
    uint8_t most = 0;
    (void)minimum;
    for (size_t i = 0; i < size; i++) {
        if (i < average) {
            most = data[i] > most ? data[i] : most;
        }
        else if (data[i] >= most) {
            return i + 1;
        }
    }
    return size;
}

static size_t
ram_hashed(const uint8_t *data, size_t size, size_t minimum, size_t average)
{
    uint64_t most = 0;
    (void)minimum;
    for (size_t end = 8; end < size; end++) {
        uint64_t value = mixed(data + end, 8);
        if (end < average) {
            most = value > most ? value : most;
        }
        else if (value >= most) {
            return end;
        }
    }
    return size;
}

/* SeqCDC (Udayashankar et al., Middleware 2024), increasing, with its authors' length 5, trigger 50, skip 512. */
static size_t
seqcdc(const uint8_t *data, size_t size, size_t minimum, size_t average)
{
    unsigned rising = 0, falling = 0;
    (void)average;
    for (size_t i = minimum; i < size; i++) {
        if (data[i] > data[i - 1]) {
            if (++rising == 5) {
                return i;
            }
        }
        else if (data[i] < data[i - 1]) {
            rising = 0;
            if (++falling == 50) {
                i += 512;
                falling = 0;
            }
        }
    }
    return size;
}

typedef size_t (*FirstCut)(const uint8_t *, size_t, size_t, size_t);

size_t
boundaries(int which, const uint8_t *data, size_t size, size_t minimum, size_t average, size_t maximum, uint64_t *ends)
{
    static const FirstCut algorithms[] = {w8m, ae, ram, ram_hashed, seqcdc};
    size_t count = 0;
    for (size_t start = 0; start < size;) {
        size_t left = size - start, most = left < maximum ? left : maximum;
        start += left <= minimum ? left : algorithms[which](data + start, most, minimum, average);
        ends[count++] = start;
    }
    return count;
}
