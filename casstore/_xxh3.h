/* XXH3 (https://github.com/Cyan4973/xxHash, doc/xxhash_spec.md), as far as `_scan.c` needs it: 64 bits of anything, 128
 * bits of a stamp; no seed. For seals, keys and cuts of nodes, in the midst of C where the `xxhash` package cannot be
 * called without the GIL and an object for each hash. tests/unit/test_filescan.py compares it with the package.
 */
#ifndef CASSTORE_XXH3_H
#define CASSTORE_XXH3_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define P32_1 0x9E3779B1U
#define P32_2 0x85EBCA77U
#define P32_3 0xC2B2AE3DU
#define P64_1 0x9E3779B185EBCA87ULL
#define P64_2 0xC2B2AE3D27D4EB4FULL
#define P64_3 0x165667B19E3779F9ULL
#define P64_4 0x85EBCA77C2B2AE63ULL
#define P64_5 0x27D4EB2F165667C5ULL
#define MIX_1 0x165667919E3779F9ULL
#define MIX_2 0x9FB21C651E98DF25ULL
#define SECRET 192
#define STRIPE 64
#define BLOCK 1024

static const uint8_t secret[SECRET] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

static uint64_t
read32(const uint8_t *at)
{
    return (uint64_t)at[0] | (uint64_t)at[1] << 8 | (uint64_t)at[2] << 16 | (uint64_t)at[3] << 24;
}

static uint64_t
read64(const uint8_t *at)
{
    return read32(at) | read32(at + 4) << 32;
}

static void
write64(uint8_t *at, uint64_t value)
{
    for (int i = 0; i < 8; i++) {
        at[i] = (uint8_t)(value >> 8 * i);
    }
}

static uint64_t
swapped(uint64_t value)
{
    uint64_t result = 0;

    for (int i = 0; i < 8; i++) {
        result = result << 8 | (value >> 8 * i & 0xFF);
    }
    return result;
}

static uint64_t
turned(uint64_t value, int bits)
{
    return value << bits | value >> (64 - bits);
}

/* Both halves of the product of two numbers, one over the other. */
static uint64_t
folded(uint64_t a, uint64_t b)
{
#ifdef __SIZEOF_INT128__
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
#else
    uint64_t low = (a & 0xFFFFFFFF) * (b & 0xFFFFFFFF), first = (a >> 32) * (b & 0xFFFFFFFF);
    uint64_t second = (a & 0xFFFFFFFF) * (b >> 32), high = (a >> 32) * (b >> 32);
    uint64_t middle = (low >> 32) + (first & 0xFFFFFFFF) + second;
    return (middle << 32 | (low & 0xFFFFFFFF)) ^ ((first >> 32) + (middle >> 32) + high);
#endif
}

static uint64_t
spread(uint64_t hash)
{
    hash = (hash ^ hash >> 37) * MIX_1;
    return hash ^ hash >> 32;
}

static uint64_t
spread_short(uint64_t hash)
{
    hash = (hash ^ hash >> 33) * P64_2;
    hash = (hash ^ hash >> 29) * P64_3;
    return hash ^ hash >> 32;
}

static uint64_t
mix16(const uint8_t *data, const uint8_t *key)
{
    return folded(read64(data) ^ read64(key), read64(data + 8) ^ read64(key + 8));
}

static void
add_stripe(uint64_t *sums, const uint8_t *data, const uint8_t *key)
{
    for (int i = 0; i < 8; i++) {
        uint64_t value = read64(data + 8 * i), keyed = value ^ read64(key + 8 * i);
        sums[i ^ 1] += value;
        sums[i] += (keyed & 0xFFFFFFFF) * (keyed >> 32);
    }
}

static uint64_t
hash_long(const uint8_t *data, size_t length)
{
    uint64_t sums[8] = {P32_3, P64_1, P64_2, P64_3, P64_4, P32_2, P64_5, P32_1}, result = (uint64_t)length * P64_1;
    size_t blocks = (length - 1) / BLOCK, stripes = (length - 1 - blocks * BLOCK) / STRIPE;

    for (size_t block = 0; block < blocks; block++) {
        for (size_t i = 0; i < BLOCK / STRIPE; i++) {
            add_stripe(sums, data + block * BLOCK + i * STRIPE, secret + 8 * i);
        }
        for (int i = 0; i < 8; i++) {
            sums[i] = (sums[i] ^ sums[i] >> 47 ^ read64(secret + SECRET - STRIPE + 8 * i)) * P32_1;
        }
    }
    for (size_t i = 0; i < stripes; i++) {
        add_stripe(sums, data + blocks * BLOCK + i * STRIPE, secret + 8 * i);
    }
    add_stripe(sums, data + length - STRIPE, secret + SECRET - STRIPE - 7);
    for (int i = 0; i < 4; i++) {
        const uint8_t *key = secret + 11 + 16 * i;
        result += folded(sums[2 * i] ^ read64(key), sums[2 * i + 1] ^ read64(key + 8));
    }
    return spread(result);
}

static uint64_t
hash64(const uint8_t *data, size_t length)
{
    uint64_t sum = (uint64_t)length * P64_1;

    if (length > 240) {
        return hash_long(data, length);
    }
    if (length > 128) {
        for (size_t i = 0; i < 8; i++) {
            sum += mix16(data + 16 * i, secret + 16 * i);
        }
        sum = spread(sum);
        for (size_t i = 8; i < length / 16; i++) {
            sum += mix16(data + 16 * i, secret + 16 * (i - 8) + 3);
        }
        return spread(sum + mix16(data + length - 16, secret + 136 - 17));
    }
    if (length > 16) {
        for (size_t i = (length - 1) / 32 + 1; i-- > 0;) {
            sum += mix16(data + 16 * i, secret + 32 * i) + mix16(data + length - 16 * (i + 1), secret + 32 * i + 16);
        }
        return spread(sum);
    }
    if (length > 8) {
        uint64_t low = read64(data) ^ read64(secret + 24) ^ read64(secret + 32);
        uint64_t high = read64(data + length - 8) ^ read64(secret + 40) ^ read64(secret + 48);
        return spread((uint64_t)length + swapped(low) + high + folded(low, high));
    }
    if (length > 3) {
        uint64_t hash = (read32(data + length - 4) + (read32(data) << 32)) ^ read64(secret + 8) ^ read64(secret + 16);
        hash = (hash ^ turned(hash, 49) ^ turned(hash, 24)) * MIX_2;
        hash = (hash ^ ((hash >> 35) + (uint64_t)length)) * MIX_2;
        return hash ^ hash >> 28;
    }
    if (length > 0) {
        uint64_t all = (uint64_t)data[0] << 16 | (uint64_t)data[length >> 1] << 24 | data[length - 1] | (uint64_t)length << 8;
        return spread_short(all ^ read32(secret) ^ read32(secret + 4));
    }
    return spread_short(read64(secret + 56) ^ read64(secret + 64));
}

#define STAMP 40
#define MARK 16

/* 128 bits of the five numbers of a stamp, as the digest is written: the higher half first, big-endian. */
static void
mark_of(const uint8_t *stamp, uint8_t *mark)
{
    uint64_t low = (uint64_t)STAMP * P64_1, high = 0, first, second;

    low = (low + mix16(stamp + 16, secret + 32)) ^ (read64(stamp + 8) + read64(stamp + 16));
    high = (high + mix16(stamp + 8, secret + 48)) ^ (read64(stamp + 16) + read64(stamp + 24));
    low = (low + mix16(stamp, secret)) ^ (read64(stamp + 24) + read64(stamp + 32));
    high = (high + mix16(stamp + 24, secret + 16)) ^ (read64(stamp) + read64(stamp + 8));
    first = spread(low + high);
    second = 0 - spread(low * P64_1 + high * P64_4 + (uint64_t)STAMP * P64_2);
    write64(mark, swapped(second));
    write64(mark + 8, swapped(first));
}

#endif
