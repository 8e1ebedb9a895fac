#include "device.h"

#include <stdio.h>
#include <string.h>

#include "error.h"
#include "golden_gpu.h"
#include "gpu.h"
#include "gpu_note.h"
#include "model.h"

ellm_status device_wanted(const settings *s, ellm_device otherwise, ellm_device *device, ellm_error *error) {
    const bool is_cpu = s->device != NULL && strcmp(s->device, "cpu") == 0;
    const bool is_gpu = s->device != NULL && strcmp(s->device, "vulkan") == 0;
    const bool is_told = s->device != NULL && strcmp(s->device, "auto") != 0;
    *device = is_cpu ? ELLM_DEVICE_CPU : is_gpu ? ELLM_DEVICE_GPU : otherwise;
    return !is_told || is_cpu || is_gpu
               ? ELLM_OK
               : ellm_fail(error, ELLM_USAGE, "--device is cpu, vulkan or auto, not '%.40s'", s->device);
}

/* Whether a failure to open a GPU is a reason to take the processor. */
static bool is_gpus_failure(ellm_status status) {
    return status == ELLM_GPU_MISSING || status == ELLM_GPU_LOST || status == ELLM_NO_MEMORY;
}

/* Says so where a program imitates a GPU that has to compute. */
static void note_imitation(const ellm_context *context) {
#ifdef ELLM_VULKAN
    ellm_device_info device;
    if (ellm_context_get_device(context, &device) && device.is_processor) {
        fprintf(
            stderr,
            "edgellm-rt: note: the only GPU that Vulkan finds is %s, which is this processor; --device cpu is faster\n",
            device.name);
    }
#else
    (void)context;
#endif
}

#ifdef ELLM_VULKAN
static const char is_other[] = "the GPU or its driver is another one than the one that has proven itself here";

/* Lets a GPU prove itself again, where another one, or another driver, has. GPU_MISSING, and a note, where it fails. */
static ellm_status prove_again(const settings *s, const ellm_trust *trust, const ellm_model *model, ellm_error *error) {
    char driver[ELLM_GPU_DRIVER];
    const int directory = ellm_model_directory(model);
    const char *sha256 = ellm_model_sha256(model);
    if (!gpu_proof_is_other(directory, sha256, "")) { /* nobody has noted anything: it is not asked */
        return ELLM_OK;
    }
    ellm_status status = ellm_gpu_find(ellm_model_gpu_plan(model), true, driver, error);
    if (status != ELLM_OK || !gpu_proof_is_other(directory, sha256, driver)) {
        return status;
    }
    fprintf(stderr, "edgellm-rt: note: %s; it does so again, which can take two minutes\n", is_other);
    ellm_error why = {{0}};
    status = golden_gpu_again(s->directory, trust, &why);
    return status == ELLM_OK ? status
                             : ellm_fail(error, status == ELLM_CANCELLED ? status : ELLM_GPU_MISSING, "%s", why.text);
}

/* Says so where it has not, and computes nevertheless. */
static void note_other(const ellm_model *model, const ellm_context *context) {
    ellm_device_info device;
    if (ellm_context_get_device(context, &device)
        && gpu_proof_is_other(ellm_model_directory(model), ellm_model_sha256(model), device.driver)) {
        fprintf(stderr, "edgellm-rt: note: %s; `edgellm-rt golden DIR --device vulkan` tries it\n", is_other);
    }
}
#endif

ellm_status device_open(const settings *s, const ellm_trust *trust, device_opener *open, void *user, ellm_model **model,
                        ellm_context **context, ellm_error *error) {
    ellm_device device;
    ellm_status status = device_wanted(s, s->takes_cpu ? ELLM_DEVICE_CPU_FIRST : ELLM_DEVICE_GPU_FIRST, &device, error);
    status = status == ELLM_OK ? ellm_model_open_on(s->directory, trust, device, model, error) : status;
    if (status != ELLM_OK) {
        return status;
    }
    ellm_model_info info;
    ellm_model_get_info(*model, &info);
#ifdef ELLM_VULKAN
    if (info.is_split && s->takes_cpu) {
        return ellm_fail(error, ELLM_USAGE,
                         "the GPU has layers of this bundle, which cannot be watched yet; compile "
                         "another one without --gpu-layers for that");
    }
#endif
    const bool may_change = info.is_both && info.on_gpu && device != ELLM_DEVICE_GPU;
    ellm_error why = {{0}};
#ifdef ELLM_VULKAN
    char note[gpu_note_cap];
    if (may_change && gpu_note_read(ellm_model_directory(*model), ellm_model_sha256(*model), note)) {
        status =
            ellm_fail(&why, ELLM_GPU_MISSING, "%.300s (`edgellm-rt golden DIR --device vulkan` tries it again)", note);
    } else
#endif
        if (may_change && info.gpu_times_slower > 0) {
        status = ellm_fail(&why, ELLM_GPU_MISSING,
                           "this board's GPU takes about %.3g times as long; --device vulkan uses it nevertheless",
                           info.gpu_times_slower);
    } else {
#ifdef ELLM_VULKAN
        status = may_change ? prove_again(s, trust, *model, &why) : ELLM_OK;
#endif
        status = status == ELLM_OK ? open(user, s, *model, may_change, context, &why) : status;
    }
    if (status == ELLM_OK) {
        note_imitation(*context);
#ifdef ELLM_VULKAN
        if (!s->proves) {
            note_other(*model, *context);
        }
#endif
        return ELLM_OK;
    }
    if (!may_change || !is_gpus_failure(status)) {
        return ellm_fail(error, status, "%s", why.text);
    }
    fprintf(stderr, "edgellm-rt: note: the processor computes: %s\n", why.text);
    ellm_model_close(*model);
    *model = NULL;
    status = ellm_model_open_on(s->directory, trust, ELLM_DEVICE_CPU, model, error);
    return status == ELLM_OK ? open(user, s, *model, false, context, error) : status;
}
