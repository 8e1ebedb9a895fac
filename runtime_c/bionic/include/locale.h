#pragma once
/* The first field of more; only bionic makes one. */
struct lconv {
    char *decimal_point;
};

struct lconv *localeconv(void);
