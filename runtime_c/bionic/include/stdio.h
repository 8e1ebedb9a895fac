#pragma once
#include <stdarg.h>
#include <sys/types.h>

#define EOF      (-1)
#define SEEK_SET 0
#define SEEK_CUR 1
#define SEEK_END 2

typedef struct FILE FILE;
extern FILE *stderr, *stdout; /* since API 23 */

FILE *fopen(const char *path, const char *mode);
int fclose(FILE *file);
int fflush(FILE *file);
int ferror(FILE *file);
char *fgets(char *line, int cap, FILE *file);
size_t fread(void *data, size_t size, size_t n, FILE *file);
size_t fwrite(const void *data, size_t size, size_t n, FILE *file);
int fputc(int character, FILE *file);
int fputs(const char *text, FILE *file);
int putchar(int character);
int puts(const char *text);
int remove(const char *path);
int rename(const char *from, const char *to);
int renameat(int from_directory, const char *from, int to_directory, const char *to);

#define PRINTS(format, first) __attribute__((__format__(__printf__, format, first)))
int printf(const char *format, ...) PRINTS(1, 2);
int fprintf(FILE *file, const char *format, ...) PRINTS(2, 3);
int dprintf(int file, const char *format, ...) PRINTS(2, 3);
int snprintf(char *text, size_t cap, const char *format, ...) PRINTS(3, 4);
int vsnprintf(char *text, size_t cap, const char *format, va_list arguments) PRINTS(3, 0);
#undef PRINTS
