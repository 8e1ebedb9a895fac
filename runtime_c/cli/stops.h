/* stops.h: stop strings, wherever token boundaries fall. */
#ifndef EDGELLM_RT_STOPS_H
#define EDGELLM_RT_STOPS_H

#include "buffer.h"

typedef struct stops {
    const char *const *texts;
    int n_texts;
    bool stopped;   /* a stop string was found; nothing after it comes through */
    buffer pending; /* the end of the text so far that may be the beginning of a stop string */
    ellm_status (*sink)(void *user, const char *text, size_t n_bytes, ellm_error *error); /* may be NULL */
    void *user;
} stops;

ellm_status stops_push(stops *s, const char *text, size_t n_bytes, ellm_error *error);
/* Lets what is pending through at the end of an answer. */
ellm_status stops_flush(stops *s, ellm_error *error);

#endif
