/* exponential.h: exp for x <= 0: the Cephes polynomial of the arithmetic contract, the same on every board. */
#ifndef ELLM_EXPONENTIAL_H
#define ELLM_EXPONENTIAL_H

#include <stdint.h>
#include <string.h>

/* a * b + c over double: the product is exact, so a compiler may fuse it or not. Needs no libm, and is the same
 * everywhere; where it differs from a float FMA (one case in 2^29) only this file would see it. */
static inline float ellm_multiply_add(float a, float b, float c) {
    return (float)((double)a * (double)b + (double)c);
}

static inline uint32_t ellm_float_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* 2^exponent, -126 <= exponent <= 127. */
static inline float ellm_power_of_two(int32_t exponent) {
    uint32_t bits = (uint32_t)(exponent + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return power;
}

static inline float ellm_exponential(float x) {
    if (!(x > -87.3f)) {
        return 0.0f;
    }
    float n = ellm_multiply_add(x, 1.44269504f, 12582912.0f) - 12582912.0f;
    float r = ellm_multiply_add(n, -0.693359375f, x);
    r = ellm_multiply_add(n, 2.12194440e-4f, r);
    float p = 1.9875691500e-4f;
    p = ellm_multiply_add(p, r, 1.3981999507e-3f);
    p = ellm_multiply_add(p, r, 8.3334519073e-3f);
    p = ellm_multiply_add(p, r, 4.1665795894e-2f);
    p = ellm_multiply_add(p, r, 1.6666665459e-1f);
    p = ellm_multiply_add(p, r, 5.0000001201e-1f);
    float y = ellm_multiply_add(p, r * r, r) + 1.0f;
    return y * ellm_power_of_two((int32_t)n);
}

#endif
