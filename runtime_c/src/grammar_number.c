/* Numbers within bounds, digit by digit. Exact where the numbers' values are doubles, too: what is written has at most 15
 * significant digits, and no two of those are the same double, so that order is kept. */
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "grammar.h"

enum { exact_digits = 15, most_free = 15 };

/* The fewest digits that give the value again, with a point whatever the locale; `format` takes their number. */
static void shortest(double value, const char *format, int least, char text[40]) {
    for (int digits = least; digits < least + 17; digits++) {
        snprintf(text, 40, format, digits, value);
        double back = strtod(text, NULL); /* in the same locale */
        if (!(back < value || back > value)) {
            break;
        }
    }
    const char *point = localeconv()->decimal_point;
    char *found = strstr(text, point);
    if (found != NULL) {
        *found = '.';
        memmove(found + 1, found + strlen(point), strlen(found + strlen(point)) + 1);
    }
}

void ellm_real_text(double value, char text[40]) {
    shortest(value, "%.*g", 1, text);
}

static void trim(ellm_bound *bound) {
    int zeros = 0;
    while (bound->n_fraction > 0 && bound->fraction[bound->n_fraction - 1] == '0') {
        bound->n_fraction--;
    }
    while (zeros < bound->n_whole - 1 && bound->whole[zeros] == '0') {
        zeros++;
    }
    bound->n_whole -= zeros;
    memmove(bound->whole, bound->whole + zeros, (size_t)bound->n_whole);
    bool is_zero = bound->n_whole == 1 && bound->whole[0] == '0' && bound->n_fraction == 0;
    bound->is_negative = bound->is_negative && !is_zero;
}

static bool read_real(double value, ellm_bound *bound) {
    char text[40], digits[24];
    if (value >= 1e15 || value <= -1e15) { /* whole: all its digits, for no number of a schema is rounded */
        bound->is_negative = value < 0;
        bound->n_whole = snprintf(text, sizeof text, "%.0f", bound->is_negative ? -value : value);
        memcpy(bound->whole, text, (size_t)bound->n_whole);
        return true;
    }
    shortest(value, "%.*e", 0, text);
    int n = 0;
    const char *at = text + (text[0] == '-');
    for (; *at != 'e'; at++) {
        if (*at != '.') {
            digits[n++] = *at;
        }
    }
    int whole = (int)strtol(at + 1, NULL, 10) + 1; /* digits before the point */
    if (whole > (int)sizeof bound->whole || n - whole > (int)sizeof bound->fraction) {
        return false;
    }
    bound->is_negative = text[0] == '-';
    for (int i = whole < 0 ? whole : 0; i < n || i < whole; i++) {
        char digit = i >= 0 && i < n ? digits[i] : '0';
        if (i < whole) {
            bound->whole[bound->n_whole++] = digit;
        } else {
            bound->fraction[bound->n_fraction++] = digit;
        }
    }
    if (bound->n_whole == 0) {
        bound->whole[bound->n_whole++] = '0';
    }
    return true;
}

bool ellm_bound_read(const ellm_json *value, bool is_exclusive, ellm_bound *bound) {
    *bound = (ellm_bound){.is_set = true, .is_exclusive = is_exclusive};
    if (value->kind == ELLM_JSON_REAL) {
        bool is_far = value->real >= 9.2e18 || value->real <= -9.2e18;
        if (is_far || !read_real(value->real, bound)) {
            return false;
        }
    } else {
        char text[24];
        bound->is_negative = value->integer < 0;
        snprintf(text, sizeof text, "%lld", (long long)value->integer);
        const char *digits = text + bound->is_negative;
        bound->n_whole = (int)strlen(digits);
        memcpy(bound->whole, digits, (size_t)bound->n_whole);
    }
    trim(bound);
    return true;
}

static int compare_sizes(const ellm_bound *a, const ellm_bound *b) {
    if (a->n_whole != b->n_whole) {
        return a->n_whole - b->n_whole;
    }
    int order = memcmp(a->whole, b->whole, (size_t)a->n_whole);
    for (int i = 0; order == 0 && (i < a->n_fraction || i < b->n_fraction); i++) {
        order = (i < a->n_fraction ? a->fraction[i] : '0') - (i < b->n_fraction ? b->fraction[i] : '0');
    }
    return order;
}

int ellm_bound_compare(const ellm_bound *a, const ellm_bound *b) {
    if (a->is_negative != b->is_negative) {
        return a->is_negative ? -1 : 1;
    }
    return a->is_negative ? -compare_sizes(a, b) : compare_sizes(a, b);
}

/* ---- sizes within a range ---- */

/* tl, th: the digits so far are those of the lower and of the upper bound. */
typedef struct span {
    ellm_builder *b;
    const ellm_bound *low, *high;
    bool whole;
    int n;             /* digits before the point */
    ellm_node_id next; /* behind the number */
    ellm_node_id free_whole[ELLM_GRAMMAR_FAR],
        free_fraction[ELLM_GRAMMAR_FAR]; /* by digits to come, where anything goes */
} span;

static ellm_node_id put_ends(span *s, int i, bool tl, bool th, ellm_node_id (*further)(span *, int, bool, bool),
                             int low, int high) {
    ellm_builder *b = s->b;
    ellm_node_id found = ELLM_NODE_FAIL;
    if (tl && th && low == high) {
        return ellm_put_bytes(b, low, low, further(s, i, true, true));
    }
    if (tl) {
        found = ellm_put_bytes(b, low, low, further(s, i, true, false));
        low++;
    }
    if (th && low <= high) {
        found = ellm_put_either(b, found, ellm_put_bytes(b, high, high, further(s, i, false, true)));
        high--;
    }
    return low <= high ? ellm_put_either(b, found, ellm_put_bytes(b, low, high, further(s, i, false, false))) : found;
}

static bool at_low(const span *s, int j) { /* j digits behind the point, all as the bound's: is that enough? */
    return j >= s->low->n_fraction && !s->low->is_exclusive;
}

static bool at_high(const span *s, int j) {
    return j < s->high->n_fraction || !s->high->is_exclusive;
}

/* The digits behind the point from the j-th on. */
static ellm_node_id put_fraction(span *s, int j, bool tl, bool th) {
    bool is_end = j > 0 && (!tl || at_low(s, j)) && (!th || at_high(s, j));
    ellm_node_id end = is_end ? s->next : ELLM_NODE_FAIL, found;
    tl = tl && (j < s->low->n_fraction || s->low->is_exclusive); /* from there on every digit is right */
    bool low_says = tl && j < s->low->n_fraction, high_says = th && j < s->high->n_fraction;
    int low = low_says ? s->low->fraction[j] : '0', high = high_says ? s->high->fraction[j] : th ? '0' : '9';
    if (!tl && !th) {
        int left = exact_digits - s->n - j;
        if (left <= 0) {
            return end;
        }
        ellm_node_id *memo = &s->free_fraction[left];
        if (*memo == ELLM_NODE_FAIL) {
            ellm_node_id more = ellm_put_bytes(s->b, '0', '9', put_fraction(s, j + 1, false, false));
            *memo = j == 0 ? more : ellm_put_either(s->b, s->next, more);
        }
        return *memo;
    }
    if (s->n + j < exact_digits) {
        found = put_ends(s, j + 1, tl, th, put_fraction, low, high);
    } else if ((low_says || high_says) && !(low_says && high_says && low != high)) { /* only the bound itself goes on */
        int digit = low_says ? low : high;
        found = ellm_put_bytes(s->b, digit, digit, put_fraction(s, j + 1, tl, th));
    } else {
        found = ELLM_NODE_FAIL;
    }
    return ellm_put_either(s->b, end, found);
}

/* Behind the digits before the point. */
static ellm_node_id put_point(span *s, bool tl, bool th) {
    bool is_end = (!tl || at_low(s, 0)) && (!th || at_high(s, 0));
    ellm_node_id end = is_end ? s->next : ELLM_NODE_FAIL;
    if (s->whole) {
        return end;
    }
    return ellm_put_either(s->b, end, ellm_put_bytes(s->b, '.', '.', put_fraction(s, 0, tl, th)));
}

/* The digits before the point from the i-th on. */
static ellm_node_id put_digits(span *s, int i, bool tl, bool th) {
    if (i == s->n && (tl || th)) {
        return put_point(s, tl, th);
    }
    ellm_node_id *memo = &s->free_whole[s->n - i];
    if (!tl && !th && i > 0) {
        if (*memo == ELLM_NODE_FAIL) {
            *memo = i == s->n ? put_point(s, false, false)
                              : ellm_put_bytes(s->b, '0', '9', put_digits(s, i + 1, false, false));
        }
        return *memo;
    }
    int least = i == 0 && s->n > 1 ? '1' : '0';
    return put_ends(s, i + 1, tl, th, put_digits, tl ? s->low->whole[i] : least, th ? s->high->whole[i] : '9');
}

/* Sizes from low to high, if that is set. */
static ellm_node_id put_sizes(ellm_builder *b, bool whole, const ellm_bound *low, const ellm_bound *high,
                              ellm_node_id next) {
    ellm_node_id found = ELLM_NODE_FAIL;
    int most = high->is_set ? high->n_whole : low->n_whole > most_free ? low->n_whole : most_free;
    if (high->is_set && compare_sizes(low, high) > 0) {
        return found;
    }
    for (int n = low->n_whole; n <= most && b->status == ELLM_OK; n++) {
        span s = {.b = b, .low = low, .high = high, .whole = whole, .n = n, .next = next};
        bool tl = n == low->n_whole, th = high->is_set && n == high->n_whole;
        found = ellm_put_either(b, found, put_digits(&s, 0, tl, th));
    }
    return found;
}

/* A whole number's bound: the next one inside. */
static ellm_bound next_whole(const ellm_bound *bound, bool is_upper) {
    ellm_bound next = *bound;
    bool cut = bound->n_fraction > 0, towards_zero = bound->is_negative != is_upper;
    next.n_fraction = 0;
    next.is_exclusive = false;
    bool steps = towards_zero ? !cut && bound->is_exclusive : cut || bound->is_exclusive;
    if (!bound->is_set || !steps) {
        trim(&next);
        return next;
    }
    bool down = towards_zero; /* the size shrinks by one, or grows */
    bool is_zero = next.n_whole == 1 && next.whole[0] == '0';
    if (down && is_zero) { /* 0 that is excluded: one beyond */
        next.is_negative = is_upper;
        next.whole[0] = '1';
        return next;
    }
    int i = next.n_whole - 1;
    for (; i >= 0 && next.whole[i] == (down ? '0' : '9'); i--) {
        next.whole[i] = down ? '9' : '0';
    }
    if (i >= 0) {
        next.whole[i] = (char)(next.whole[i] + (down ? -1 : 1));
    } else {
        memmove(next.whole + 1, next.whole, (size_t)next.n_whole++);
        next.whole[0] = '1';
    }
    trim(&next);
    return next;
}

ellm_node_id ellm_put_range(ellm_builder *b, bool whole, const ellm_bound *least, const ellm_bound *most,
                            ellm_node_id next) {
    if (!least->is_set && !most->is_set) {
        return ellm_put_number(b, whole, most_free, next);
    }
    ellm_bound low = whole ? next_whole(least, false) : *least, high = whole ? next_whole(most, true) : *most;
    const ellm_bound zero = {.is_set = true, .n_whole = 1, .whole = "0"};
    ellm_bound above_zero = zero;
    above_zero.is_exclusive = true; /* -0 is left out */
    ellm_node_id found = ELLM_NODE_FAIL;
    if (low.is_set && high.is_set && ellm_bound_compare(&low, &high) > 0) {
        return found;
    }
    if (!high.is_set || !high.is_negative) {
        found = put_sizes(b, whole, low.is_set && !low.is_negative ? &low : &zero, &high, next);
    }
    if (!low.is_set || low.is_negative) {
        ellm_bound one = {.is_set = true, .n_whole = 1, .whole = "1"};
        const ellm_bound *from = high.is_set && high.is_negative ? &high : whole ? &one : &above_zero;
        found = ellm_put_either(b, found, ellm_put_bytes(b, '-', '-', put_sizes(b, whole, from, &low, next)));
    }
    return found;
}
