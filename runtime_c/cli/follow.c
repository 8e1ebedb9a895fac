#include "posix.h"

#include "follow.h"

#ifdef EDGELLM_FOLLOWS
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { piece_bytes = 1 << 20, most_line = 1 << 16 };

static ellm_status bad(ellm_error *error, const char *text) {
    return ellm_fail(error, ELLM_BUNDLE_FORMAT, "--follow: %s", text);
}

/* A line without its end. */
static ellm_status read_line(follower *f, ellm_error *error) {
    char letter = '\0';
    buffer_clear(&f->line);
    while (f->line.n < most_line && fread(&letter, 1, 1, f->file) == 1 && letter != '\n') {
        buffer_put(&f->line, &letter, 1);
    }
    return letter == '\n' ? ELLM_OK : bad(error, "it ends, or has a line that is none of a trace's");
}

ellm_status follow_open(follower *f, const settings *s, const engine *e, ellm_error *error) {
    static const char first[] = "{\"trace\":1,";
    ellm_device_info device;
    if (s->follow == NULL) {
        return ELLM_OK;
    }
    if (!ellm_context_get_device(e->context, &device)) {
        return ellm_fail(error, ELLM_USAGE, "--follow goes with --device vulkan");
    }
    f->file = fopen(s->follow, "rb");
    f->piece = malloc(piece_bytes);
    if (f->file == NULL || f->piece == NULL) {
        return ellm_fail(error, f->file == NULL ? ELLM_IO : ELLM_NO_MEMORY, "--follow %.200s: %s", s->follow,
                         strerror(errno));
    }
    ellm_status status = read_line(f, error);
    if (status == ELLM_OK && (f->line.n < sizeof first || memcmp(f->line.data, first, sizeof first - 1) != 0)) {
        status = bad(error, "it is not what `edgellm-rt trace --data` prints");
    }
    return status;
}

ellm_status follow_line(follower *f, const buffer *expected, ellm_error *error) {
    ellm_status status = read_line(f, error);
    if (status == ELLM_OK && (f->line.n <= expected->n || memcmp(f->line.data, expected->data, expected->n) != 0)) {
        status = bad(error, "it is of another bundle, of other tokens or other rows at a time, or without --data");
    }
    return status;
}

ellm_status follow_bytes(follower *f, const ellm_observed *now, uint32_t step, uint32_t argument, uint64_t offset,
                         uint64_t bytes, ellm_error *error) {
    const ellm_plan_argument *where = &now->function->steps[step].arguments[argument];
    ellm_status status = ELLM_OK;
    for (uint64_t done = 0, n; done < bytes && status == ELLM_OK; done += n) {
        n = bytes - done < piece_bytes ? bytes - done : piece_bytes;
        status = fread(f->piece, 1, (size_t)n, f->file) == n ? ELLM_OK : bad(error, "it ends within a step's bytes");
        status = status == ELLM_OK ? ellm_gpu_put(now->gpu, where, offset + done, n, f->piece) : status;
    }
    return status;
}

void follow_close(follower *f) {
    if (f->file != NULL) {
        fclose(f->file);
    }
    buffer_free(&f->line);
    free(f->piece);
}

#endif
