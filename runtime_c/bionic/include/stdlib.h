#pragma once
#include <stddef.h>

#define EXIT_SUCCESS 0
#define EXIT_FAILURE 1

int abs(int x);
void *malloc(size_t n_bytes);
void *calloc(size_t n, size_t n_bytes);
void *realloc(void *data, size_t n_bytes);
int posix_memalign(void **data, size_t alignment, size_t n_bytes);
void free(void *data);
_Noreturn void exit(int code);
_Noreturn void abort(void);
char *getenv(const char *name);
int setenv(const char *name, const char *value, int replace);
int unsetenv(const char *name);
double strtod(const char *text, char **end);
long strtol(const char *text, char **end, int base);
long long strtoll(const char *text, char **end, int base);
unsigned long strtoul(const char *text, char **end, int base);
unsigned long long strtoull(const char *text, char **end, int base);
void qsort(void *data, size_t n, size_t size, int (*compare)(const void *, const void *));
void *bsearch(const void *key, const void *data, size_t n, size_t size, int (*compare)(const void *, const void *));
