/* check.h: the smallest test harness: CHECK counts and prints failures, main returns check_result(). */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <string.h>

static int check_failures;

#define CHECK(condition)                                                                                               \
    ((condition) ? (void)0 : (void)(check_failures++, fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition)))

/* A status, and what the error text must mention. */
#define CHECK_STATUS(actual, expected, error, part)                                                                    \
    do {                                                                                                               \
        ellm_status check_status = (actual);                                                                           \
        if (check_status != (expected) || strstr((error).text, part) == NULL) {                                        \
            check_failures++;                                                                                          \
            fprintf(stderr, "%s:%d: %s is %s (%s), expected %s mentioning \"%s\"\n", __FILE__, __LINE__, #actual,      \
                    ellm_status_name(check_status), (error).text, ellm_status_name(expected), part);                   \
        }                                                                                                              \
    } while (0)

static inline int check_result(void) {
    return check_failures != 0;
}

#endif
