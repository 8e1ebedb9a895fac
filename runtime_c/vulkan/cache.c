#include "posix.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "parts.h"
#include "sha256.h"

static const char path[] = ".pipelines", new_path[] = ".pipelines.new", magic[] = "ELLMPIP1";
enum { magic_bytes = 8, sum_bytes = 64, head_bytes = magic_bytes + sum_bytes, most_bytes = 64 << 20 };

static void sum_of(const uint8_t *data, size_t n_bytes, char sum[sum_bytes + 1]) {
    ellm_sha256 sha;
    ellm_sha256_init(&sha);
    ellm_sha256_update(&sha, data, n_bytes);
    ellm_sha256_hex(&sha, sum);
}

/* Whether a driver's data is whole and of this device and driver. Drivers differ in what they check. */
static bool fits(const ellm_gpu *gpu, const uint8_t *file, size_t n_bytes) {
    VkPipelineCacheHeaderVersionOne head;
    char sum[sum_bytes + 1];
    if (n_bytes < head_bytes + sizeof head || memcmp(file, magic, magic_bytes) != 0) {
        return false;
    }
    memcpy(&head, file + head_bytes, sizeof head);
    sum_of(file + head_bytes, n_bytes - head_bytes, sum);
    return memcmp(file + magic_bytes, sum, sum_bytes) == 0 && head.headerSize == sizeof head
           && head.headerVersion == VK_PIPELINE_CACHE_HEADER_VERSION_ONE && head.vendorID == gpu->vendor
           && head.deviceID == gpu->kind
           && memcmp(head.pipelineCacheUUID, gpu->cache_uuid, sizeof gpu->cache_uuid) == 0;
}

/* The whole file; NULL if there is none that could be a cache. */
static uint8_t *read_file(int directory, size_t *n_bytes) {
    struct stat about;
    int file = openat(directory, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
    if (file < 0) {
        return NULL;
    }
    bool good = fstat(file, &about) == 0 && S_ISREG(about.st_mode) && about.st_size > 0 && about.st_size <= most_bytes;
    *n_bytes = good ? (size_t)about.st_size : 0;
    uint8_t *data = good ? malloc(*n_bytes) : NULL;
    size_t done = 0;
    while (data != NULL && done < *n_bytes) {
        ssize_t n = read(file, data + done, *n_bytes - done);
        if (n <= 0) {
            break;
        }
        done += (size_t)n;
    }
    close(file);
    *n_bytes = done;
    return data;
}

void ellm_vulkan_open_cache(ellm_gpu *gpu) {
    if (gpu->source.directory < 0) {
        return;
    }
    size_t n_bytes = 0;
    uint8_t *file = read_file(gpu->source.directory, &n_bytes);
    bool good = file != NULL && fits(gpu, file, n_bytes);
    gpu->cache_bytes = good ? n_bytes : 0;
    const VkPipelineCacheCreateInfo info = {.sType = VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO,
                                            .initialDataSize = good ? n_bytes - head_bytes : 0,
                                            .pInitialData = good ? file + head_bytes : NULL};
    if (gpu->api.CreatePipelineCache(gpu->device, &info, NULL, &gpu->cache) != VK_SUCCESS) {
        gpu->cache = VK_NULL_HANDLE;
    }
    free(file);
}

/* Not synced: after a loss of power its sum is wrong, and everything is compiled again. */
static void write_file(int directory, const uint8_t *data, size_t n_bytes) {
    int file = openat(directory, new_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (file < 0) {
        return;
    }
    size_t done = 0;
    while (done < n_bytes) {
        ssize_t n = write(file, data + done, n_bytes - done);
        if (n <= 0) {
            break;
        }
        done += (size_t)n;
    }
    bool good = close(file) == 0 && done == n_bytes;
    if (!good || renameat(directory, new_path, directory, path) != 0) {
        unlinkat(directory, new_path, 0);
    }
}

void ellm_vulkan_save_cache(ellm_gpu *gpu) {
    size_t n_bytes = 0;
    if (gpu->api.GetPipelineCacheData(gpu->device, gpu->cache, &n_bytes, NULL) != VK_SUCCESS
        || n_bytes > most_bytes - head_bytes || n_bytes + head_bytes == gpu->cache_bytes) {
        return; /* the same pipelines, the same length: nothing new */
    }
    uint8_t *file = malloc(head_bytes + n_bytes);
    if (file != NULL
        && gpu->api.GetPipelineCacheData(gpu->device, gpu->cache, &n_bytes, file + head_bytes) == VK_SUCCESS) {
        char sum[sum_bytes + 1];
        sum_of(file + head_bytes, n_bytes, sum);
        memcpy(file, magic, magic_bytes);
        memcpy(file + magic_bytes, sum, sum_bytes);
        write_file(gpu->source.directory, file, head_bytes + n_bytes);
    }
    free(file);
}
