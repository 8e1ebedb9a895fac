#include "posix.h"

#include "memory.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

uint64_t ellm_available_bytes(void) {
    char text[512] = "";
    int file = open("/proc/meminfo", O_RDONLY | O_CLOEXEC);
    ssize_t n = file < 0 ? -1 : read(file, text, sizeof text - 1);
    if (file >= 0) {
        close(file);
    }
    const char *at = n > 0 ? strstr(text, "MemAvailable:") : NULL;
    if (at == NULL) {
        return UINT64_MAX;
    }
    return strtoull(at + strlen("MemAvailable:"), NULL, 10) * 1024;
}
