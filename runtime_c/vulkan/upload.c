/* upload.c: weights on their way to a device that cannot have them where they are.
 *
 * Several threads read the files straight into the device's memory or, where the processor does not see that, into one
 * of a few stages, which the device copies while the next ones are filled. Reading takes no faults of pages, which cost
 * more than the copy does, and leaves the process no larger. What has no file (weights that were encrypted) is copied. */
#include "posix.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "cores.h"
#include "error.h"
#include "file.h"
#include "parts.h"
#include "pool.h"
#include "watch.h"

/* Stages that stay in a processor's cache while they are filled, and pieces of one that threads share out. */
enum { n_stages = 4, most_pieces = 128, most_threads = 8 };
static const VkDeviceSize stage_bytes = (VkDeviceSize)8 << 20, piece_bytes = (VkDeviceSize)256 << 10;
static const char doing[] = "copying weights";

/* A part of a weight. */
struct piece {
    const uint8_t *from;
    uint8_t *to;
    size_t n_bytes;
    int file; /* where `from` is mapped from; -1: nothing */
    off_t at;
};

struct upload {
    ellm_gpu *gpu;
    ellm_pool *pool;
    int32_t n_threads;
    struct piece pieces[most_pieces];
    size_t n_pieces;
    atomic_int failure;        /* errno of a read; ENODATA: the file ended */
    ellm_vulkan_buffer buffer; /* of all stages; they are used in turn */
    VkCommandBuffer commands[n_stages];
    VkFence fences[n_stages];
    bool busy[n_stages];
    int turn;
    VkDeviceSize used; /* of the stage whose turn it is */
    bool recording;
};

/* ---- the processor's part ---- */

static bool read_piece(const struct piece *piece, atomic_int *failure) {
    for (size_t done = 0; done < piece->n_bytes;) {
        ssize_t n = pread(piece->file, piece->to + done, piece->n_bytes - done, piece->at + (off_t)done);
        if (n > 0) {
            done += (size_t)n;
        } else if (n == 0 || errno != EINTR) {
            atomic_store(failure, n == 0 ? ENODATA : errno);
            return false;
        }
    }
    return true;
}

/* Copies the pieces [g0, g1): a kernel of one pointer. */
static int32_t copy_pieces(void *argument, int64_t g0, int64_t g1) {
    struct upload *u = argument;
    for (int64_t i = g0; i < g1; i++) {
        const struct piece *piece = &u->pieces[i];
        if (piece->file < 0) {
            memcpy(piece->to, piece->from, piece->n_bytes);
        } else if (!read_piece(piece, &u->failure)) {
            return 1;
        }
    }
    return 0;
}

/* Copies what was noted. */
static ellm_status fill(struct upload *u, ellm_error *error) {
    void *pointer = u;
    const ellm_launch launch = {(void (*)(void))copy_pieces, &pointer, {0}, (int64_t)u->n_pieces, 1, 1, 0};
    if (u->n_pieces == 0 || ellm_pool_run(u->pool, &launch, 1, u->n_threads) == ELLM_OK) {
        u->n_pieces = 0;
        return ELLM_OK;
    }
    const int failure = atomic_load(&u->failure);
    return ellm_fail(error, ELLM_IO, "reading weights: %s",
                     failure == ENODATA ? "a file became shorter; deploy the bundle again" : strerror(failure));
}

/* The open file that a weight is mapped from, if there is one. */
static const ellm_file *file_of(const ellm_gpu *gpu, const ellm_plan_weight *weight) {
    for (size_t i = 0; i < gpu->source.n_files; i++) {
        const ellm_file *file = &gpu->source.files[i];
        if (file->descriptor >= 0 && weight->data >= file->data && weight->data < file->data + file->bytes) {
            return file;
        }
    }
    return NULL;
}

/* Notes a part of a weight, in pieces. */
static void note(struct upload *u, const ellm_file *file, const uint8_t *from, uint8_t *to, VkDeviceSize n_bytes) {
    for (VkDeviceSize done = 0; done < n_bytes; done += piece_bytes) {
        const VkDeviceSize rest = n_bytes - done;
        u->pieces[u->n_pieces++] = (struct piece){.from = from + done,
                                                  .to = to + done,
                                                  .n_bytes = (size_t)(rest < piece_bytes ? rest : piece_bytes),
                                                  .file = file != NULL ? file->descriptor : -1,
                                                  .at = file != NULL ? from + done - file->data : 0};
    }
}

/* ---- the device's ---- */

static ellm_status await_stage(struct upload *u, int stage, ellm_error *error) {
    const ellm_vulkan_api *api = &u->gpu->api;
    VkFence *fence = &u->fences[stage];
    if (!u->busy[stage]) {
        return ELLM_OK;
    }
    const int64_t start = ellm_now_ns();
    u->busy[stage] = false;
    VkResult result = api->WaitForFences(u->gpu->device, 1, fence, VK_TRUE, (uint64_t)120 * 1000000000);
    result = result == VK_SUCCESS ? api->ResetFences(u->gpu->device, 1, fence) : result;
    u->gpu->info.upload_wait_ms += (double)(ellm_now_ns() - start) / 1e6;
    u->gpu->is_stuck = u->gpu->is_stuck || result != VK_SUCCESS;
    return result == VK_SUCCESS ? ELLM_OK : ellm_vulkan_failed(result, doing, error);
}

/* Fills the stage whose turn it is, sends it off, and turns. */
static ellm_status send_stage(struct upload *u, ellm_error *error) {
    ellm_status status = fill(u, error);
    if (status != ELLM_OK || !u->recording) {
        return status;
    }
    const ellm_vulkan_api *api = &u->gpu->api;
    VkCommandBuffer commands = u->commands[u->turn];
    VkResult result = api->EndCommandBuffer(commands);
    const VkSubmitInfo submit = {
        .sType = VK_STRUCTURE_TYPE_SUBMIT_INFO, .commandBufferCount = 1, .pCommandBuffers = &commands};
    result = result == VK_SUCCESS ? api->QueueSubmit(u->gpu->queue, 1, &submit, u->fences[u->turn]) : result;
    if (result != VK_SUCCESS) {
        return ellm_vulkan_failed(result, doing, error);
    }
    u->busy[u->turn] = true;
    u->recording = false;
    u->used = 0;
    u->turn = (u->turn + 1) % n_stages;
    return ELLM_OK;
}

static ellm_status open_stages(struct upload *u, ellm_error *error) {
    const VkFenceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
    ellm_status status = ellm_vulkan_new_stage(u->gpu, n_stages * stage_bytes, doing, &u->buffer, error);
    for (int i = 0; i < n_stages && status == ELLM_OK; i++) {
        status = ellm_vulkan_commands(u->gpu, &u->commands[i], error);
        VkResult result =
            status == ELLM_OK ? u->gpu->api.CreateFence(u->gpu->device, &info, NULL, &u->fences[i]) : VK_SUCCESS;
        if (result != VK_SUCCESS) {
            u->fences[i] = VK_NULL_HANDLE;
            status = ellm_vulkan_failed(result, doing, error);
        }
    }
    return status;
}

static void close_stages(struct upload *u) {
    for (int i = 0; i < n_stages && !u->gpu->is_stuck; i++) {
        (void)await_stage(u, i, NULL);
    }
    if (u->gpu->is_stuck) { /* it may still read them: they stay until the program ends */
        return;
    }
    for (int i = 0; i < n_stages; i++) {
        if (u->fences[i] != VK_NULL_HANDLE) {
            u->gpu->api.DestroyFence(u->gpu->device, u->fences[i], NULL);
        }
    }
    ellm_vulkan_free_buffer(u->gpu, &u->buffer);
}

/* Begins a stage, unless one is begun. */
static ellm_status begin_stage(struct upload *u, ellm_error *error) {
    if (u->recording) {
        return ELLM_OK;
    }
    ellm_status status = u->buffer.buffer == VK_NULL_HANDLE ? open_stages(u, error) : ELLM_OK;
    status = status == ELLM_OK ? await_stage(u, u->turn, error) : status;
    status = status == ELLM_OK ? ellm_vulkan_begin(u->gpu, u->commands[u->turn], true, error) : status;
    u->recording = status == ELLM_OK;
    return status;
}

/* ---- a weight ---- */

/* Sends as much of a weight as there is room for, from `done` on, and adds it to that. */
static ellm_status upload_part(struct upload *u, const ellm_plan_weight *weight, const ellm_file *file,
                               const ellm_vulkan_place *to, VkDeviceSize *done, ellm_error *error) {
    const bool is_staged = to->buffer->mapped == NULL;
    ellm_status status = ELLM_OK;
    if (u->n_pieces == most_pieces || (is_staged && u->used == stage_bytes)) {
        status = send_stage(u, error);
    }
    status = status == ELLM_OK && is_staged ? begin_stage(u, error) : status;
    if (status != ELLM_OK) {
        return status;
    }
    const VkDeviceSize rest = weight->bytes - *done, most = (most_pieces - u->n_pieces) * piece_bytes;
    VkDeviceSize n = rest < most ? rest : most;
    uint8_t *target = to->buffer->mapped;
    if (is_staged) {
        n = n < stage_bytes - u->used ? n : stage_bytes - u->used;
        const VkBufferCopy copy = {
            .srcOffset = (VkDeviceSize)u->turn * stage_bytes + u->used, .dstOffset = to->offset + *done, .size = n};
        u->gpu->api.CmdCopyBuffer(u->commands[u->turn], u->buffer.buffer, to->buffer->buffer, 1, &copy);
        target = u->buffer.mapped + copy.srcOffset;
        u->used += (n + 3) / 4 * 4;
    } else {
        target += to->offset + *done;
    }
    note(u, file, weight->data + *done, target, n);
    *done += n;
    return ELLM_OK;
}

static ellm_status upload_all(struct upload *u, ellm_error *error) {
    const ellm_plan *plan = u->gpu->source.plan;
    ellm_status status = ELLM_OK;
    for (uint32_t i = 0; i < plan->n_weights && status == ELLM_OK; i++) {
        const ellm_plan_weight *weight = &plan->weights[i];
        const ellm_vulkan_place *to = &u->gpu->weights[i];
        const ellm_file *file = file_of(u->gpu, weight);
        for (VkDeviceSize done = to->buffer->imported ? weight->bytes : 0; done < weight->bytes && status == ELLM_OK;) {
            status = upload_part(u, weight, file, to, &done, error);
        }
    }
    status = status == ELLM_OK ? send_stage(u, error) : status;
    for (int i = 0; i < n_stages && status == ELLM_OK; i++) { /* the oldest first */
        status = await_stage(u, (u->turn + i) % n_stages, error);
    }
    return status;
}

ellm_status ellm_vulkan_upload(ellm_gpu *gpu, ellm_error *error) {
    const ellm_plan *plan = gpu->source.plan;
    for (uint32_t i = 0; i < plan->n_weights; i++) {
        gpu->info.uploaded_bytes += gpu->weights[i].buffer->imported ? 0 : plan->weights[i].bytes;
    }
    if (gpu->info.uploaded_bytes == 0) {
        return ELLM_OK;
    }
    const int64_t start = ellm_now_ns();
    struct upload u = {.gpu = gpu};
    ellm_cores cores;
    ellm_cores_read(&cores);
    u.n_threads = cores.n_useful < most_threads ? cores.n_useful : most_threads;
    ellm_status status = ellm_pool_open(u.n_threads, &cores, &u.pool, error);
    status = status == ELLM_OK ? upload_all(&u, error) : status;
    close_stages(&u);
    ellm_pool_close(u.pool);
    gpu->info.upload_copy_ms = (double)(ellm_now_ns() - start) / 1e6;
    return status;
}
