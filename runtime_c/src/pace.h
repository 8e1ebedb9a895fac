/* pace.h: what was measured about a bundle on this machine, remembered from one program to the next (FORMAT.md).
 *
 * It decides about speed only, and everything in it is checked: what does not fit is as if it were not there. */
#ifndef ELLM_PACE_H
#define ELLM_PACE_H

#include "ladder.h"

typedef struct ellm_pace {
    const char *sha256; /* of manifest.json */
    int32_t n_cores;
    int32_t n_prefill, n_decode; /* threads, 1 to n_cores; 0: nothing is remembered */
    ellm_step_ladder *body, *head;
} ellm_pace;

enum { ELLM_PACE_BYTES = 4096 };

/* Writes the text, at most `cap` bytes, and returns its length; 0 if it does not fit. */
size_t ellm_pace_print(const ellm_pace *pace, char *text, size_t cap);
/* Takes threads and costs from a text for the same manifest and number of cores. False: nothing was taken. */
bool ellm_pace_parse(ellm_pace *pace, const char *text, size_t n_bytes);

/* The same with the file in a bundle's directory. A file that cannot be read or written is done without. */
bool ellm_pace_read(ellm_pace *pace, int directory);
void ellm_pace_write(const ellm_pace *pace, int directory);

#endif
