#include "posix.h"

#include "pace.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char path[] = ".pace", new_path[] = ".pace.new";
static const double longest_ns = 1e12;

/* ---- text ---- */

typedef struct writer {
    char *text;
    size_t n, cap;
} writer;

static void put(writer *to, const char *word, uint64_t a, uint64_t b) {
    int n = snprintf(to->text + to->n, to->cap - to->n, "%s %llu %llu\n", word, (unsigned long long)a,
                     (unsigned long long)b);
    to->n = n > 0 && (size_t)n < to->cap - to->n ? to->n + (size_t)n : to->cap;
}

static void put_costs(writer *to, const char *word, const ellm_step_ladder *ladder) {
    for (uint32_t i = 0; i < ladder->n_functions && to->n < to->cap; i++) {
        const ellm_step_function *function = &ladder->functions[i];
        if (function->cost_ns > 0 && function->cost_ns < longest_ns) {
            put(to, word, (uint64_t)function->n, (uint64_t)function->cost_ns);
        }
    }
}

size_t ellm_pace_print(const ellm_pace *pace, char *text, size_t cap) {
    int n = snprintf(text, cap, "edgellm-pace 1 %d %s\n", (int)pace->n_cores, pace->sha256);
    writer to = {text, n > 0 && (size_t)n < cap ? (size_t)n : cap, cap};
    if (to.n < cap) {
        put(&to, "threads", (uint64_t)pace->n_prefill, (uint64_t)pace->n_decode);
    }
    put_costs(&to, "body", pace->body);
    put_costs(&to, "head", pace->head);
    if (to.n < cap) {
        put(&to, "end", 0, 0);
    }
    return to.n < cap ? to.n : 0;
}

/* Reads "word a b\n" and moves on; false for anything else. */
static bool take(const char **at, const char *end, const char *word, uint64_t numbers[2]) {
    const char *now = *at;
    size_t length = strlen(word);
    if ((size_t)(end - now) < length || memcmp(now, word, length) != 0) {
        return false;
    }
    now += length;
    for (int i = 0; i < 2; i++) {
        if (now == end || *now++ != ' ' || now == end || *now < '0' || *now > '9') {
            return false;
        }
        for (numbers[i] = 0; now < end && *now >= '0' && *now <= '9'; now++) {
            if (numbers[i] > (uint64_t)longest_ns) {
                return false;
            }
            numbers[i] = numbers[i] * 10 + (uint64_t)(*now - '0');
        }
    }
    if (now == end || *now != '\n') {
        return false;
    }
    *at = now + 1;
    return true;
}

/* The costs of one ladder; `apply` is false for the first look, which only checks. */
static void take_costs(const char **at, const char *end, const char *word, ellm_step_ladder *ladder, bool apply) {
    uint64_t numbers[2];
    while (take(at, end, word, numbers)) {
        for (uint32_t i = 0; i < ladder->n_functions && apply; i++) {
            ellm_step_function *function = &ladder->functions[i];
            if ((uint64_t)function->n == numbers[0] && numbers[1] > 0) {
                function->cost_ns = (double)numbers[1];
            }
        }
    }
}

bool ellm_pace_parse(ellm_pace *pace, const char *text, size_t n_bytes) {
    char first[128];
    int length = snprintf(first, sizeof first, "edgellm-pace 1 %d %s\n", (int)pace->n_cores, pace->sha256);
    if (length < 0 || n_bytes < (size_t)length || memcmp(text, first, (size_t)length) != 0) {
        return false;
    }
    for (int apply = 0; apply < 2; apply++) {
        const char *at = text + length, *end = text + n_bytes;
        uint64_t threads[2], none[2], most = (uint64_t)pace->n_cores;
        if (!take(&at, end, "threads", threads) || threads[0] < 1 || threads[0] > most || threads[1] < 1
            || threads[1] > most) {
            return false;
        }
        take_costs(&at, end, "body", pace->body, apply == 1);
        take_costs(&at, end, "head", pace->head, apply == 1);
        if (!take(&at, end, "end", none) || at != end) {
            return false;
        }
        pace->n_prefill = (int32_t)threads[0];
        pace->n_decode = (int32_t)threads[1];
    }
    ellm_ladder_choose(pace->body);
    ellm_ladder_choose(pace->head);
    return true;
}

/* ---- file ---- */

bool ellm_pace_read(ellm_pace *pace, int directory) {
    char text[ELLM_PACE_BYTES];
    int file = openat(directory, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0) {
        return false;
    }
    ssize_t n = read(file, text, sizeof text);
    close(file);
    return n > 0 && ellm_pace_parse(pace, text, (size_t)n);
}

/* Not synced: after a loss of power it is empty or gone, and measured again. */
void ellm_pace_write(const ellm_pace *pace, int directory) {
    char text[ELLM_PACE_BYTES];
    size_t n = ellm_pace_print(pace, text, sizeof text);
    int file = n == 0 ? -1 : openat(directory, new_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (file < 0) {
        return;
    }
    bool good = write(file, text, n) == (ssize_t)n;
    good = close(file) == 0 && good;
    if (!good || renameat(directory, new_path, directory, path) != 0) {
        unlinkat(directory, new_path, 0);
    }
}
