#include "utf8.h"

size_t ellm_utf8_read(const uint8_t *text, size_t n, uint32_t *point) {
    uint8_t lead = text[0];
    if (lead < 0x80) {
        *point = lead;
        return 1;
    }
    if (lead < 0xC2 || lead > 0xF4) {
        *point = ELLM_UTF8_BAD;
        return 1;
    }
    size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    uint32_t value = lead & (0x7Fu >> length);
    for (size_t i = 1; i < length; i++) {
        if (i == n) {
            *point = ELLM_UTF8_CUT;
            return i;
        }
        uint8_t least = 0x80, most = 0xBF;
        if (i == 1) {
            least = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
            most = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
        }
        if (text[i] < least || text[i] > most) {
            *point = ELLM_UTF8_BAD;
            return i;
        }
        value = value << 6 | (text[i] & 0x3Fu);
    }
    *point = value;
    return length;
}

size_t ellm_utf8_write(uint32_t point, uint8_t out[4]) {
    if (point < 0x80) {
        out[0] = (uint8_t)point;
        return 1;
    }
    if (point < 0x800) {
        out[0] = (uint8_t)(0xC0 | point >> 6);
        out[1] = (uint8_t)(0x80 | (point & 0x3F));
        return 2;
    }
    if (point < 0x10000) {
        out[0] = (uint8_t)(0xE0 | point >> 12);
        out[1] = (uint8_t)(0x80 | (point >> 6 & 0x3F));
        out[2] = (uint8_t)(0x80 | (point & 0x3F));
        return 3;
    }
    out[0] = (uint8_t)(0xF0 | point >> 18);
    out[1] = (uint8_t)(0x80 | (point >> 12 & 0x3F));
    out[2] = (uint8_t)(0x80 | (point >> 6 & 0x3F));
    out[3] = (uint8_t)(0x80 | (point & 0x3F));
    return 4;
}

bool ellm_utf8_valid(const uint8_t *text, size_t n) {
    for (size_t at = 0; at < n;) {
        uint32_t point;
        at += ellm_utf8_read(text + at, n - at, &point);
        if (point > 0x10FFFF) {
            return false;
        }
    }
    return true;
}
