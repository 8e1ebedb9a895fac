/* gpus: what Vulkan finds here, and what each driver allows kernels; a host compiles for that. */
#include "program.h"

#ifdef ELLM_VULKAN
#include <string.h>

#include "buffer.h"
#include "driver.h"
#include "shader.h"

enum { edge = 16, intel = 0x8086 };

static const char *kind_of(VkPhysicalDeviceType type) {
    switch (type) {
    case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU: return "discrete";
    case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU: return "integrated";
    case VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU: return "virtual";
    case VK_PHYSICAL_DEVICE_TYPE_CPU: return "processor";
    default: return "other";
    }
}

static void put_text(buffer *json, const char *key, const char *text) {
    buffer_print(json, ",\"%s\":", key);
    if (text == NULL) {
        buffer_print(json, "null");
    } else {
        buffer_put_json(json, text, strlen(text));
    }
}

static void put_flag(buffer *json, const char *key, bool is_set) {
    buffer_print(json, ",\"%s\":%s", key, is_set ? "true" : "false");
}

/* Whether dot products of four bytes are less work if one side has no sign: they are an instruction then, but not those
 * of two signed ones, on Adreno; Intel's GPUs that have none take single bytes from a register, if they have no sign. */
static bool wants_unsigned(const ellm_vulkan_api *api, const ellm_vulkan_device *device) {
    VkPhysicalDeviceShaderIntegerDotProductProperties dot = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_PROPERTIES};
    VkPhysicalDeviceProperties2 about = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2, .pNext = &dot};
    api->GetPhysicalDeviceProperties2(device->physical, &about);
    return dot.integerDotProduct4x8BitPackedSignedAccelerated == VK_FALSE
           && (dot.integerDotProduct4x8BitPackedMixedSignednessAccelerated != VK_FALSE
               || device->properties.vendorID == intel);
}

static void put_device(buffer *json, const ellm_vulkan_api *api, const ellm_vulkan_device *device, const char *lack) {
    const VkPhysicalDeviceProperties *p = &device->properties;
    const VkPhysicalDeviceLimits *limits = &p->limits;
    const bool asked = lack == NULL;
    const bool sums = asked && (device->subgroup.supportedOperations & VK_SUBGROUP_FEATURE_ARITHMETIC_BIT) != 0;
    const bool dot = asked && device->features.dot.shaderIntegerDotProduct != VK_FALSE;
    const bool halves = asked && device->features.storage16.storageBuffer16BitAccess != VK_FALSE;
    const bool bytes = asked && device->features.storage8.storageBuffer8BitAccess != VK_FALSE;
    const uint32_t subgroup = device->subgroup.subgroupSize;
    const bool multiplies = asked && subgroup < 256 && ellm_vulkan_multiplies(api, device, subgroup, edge);
    const uint32_t width = limits->maxComputeWorkGroupSize[0], most = limits->maxComputeWorkGroupInvocations;
    buffer_print(json, "{\"type\":\"gpu\"");
    put_text(json, "name", p->deviceName);
    put_text(json, "kind", kind_of(p->deviceType));
    put_text(json, "driver", device->driver.driverName);
    put_text(json, "version", device->driver.driverInfo);
    put_text(json, "lacks", lack);
    buffer_print(json, ",\"vulkan\":\"%u.%u.%u\",\"vendor\":%u,\"invocations\":%u,\"shared_bytes\":%u",
                 (unsigned)VK_API_VERSION_MAJOR(p->apiVersion), (unsigned)VK_API_VERSION_MINOR(p->apiVersion),
                 (unsigned)VK_API_VERSION_PATCH(p->apiVersion), (unsigned)p->vendorID,
                 (unsigned)(width < most ? width : most), (unsigned)limits->maxComputeSharedMemorySize);
    buffer_print(json, ",\"storage_buffers\":%u,\"binding_bytes\":%u,\"subgroup\":%u",
                 (unsigned)limits->maxPerStageDescriptorStorageBuffers, (unsigned)limits->maxStorageBufferRange,
                 (unsigned)subgroup);
    put_flag(json, "halves", halves);
    put_flag(json, "bytes", bytes);
    put_flag(json, "sums", sums);
    put_flag(json, "dot", dot);
    put_flag(json, "mixed", dot && wants_unsigned(api, device));
    put_flag(json, "matrices", multiplies);
    buffer_print(json, "}\n");
}

ellm_status gpus_main(const settings *s, ellm_error *error) {
    (void)s;
    ellm_vulkan_api api;
    ellm_status status = ellm_vulkan_load(&api, error);
    if (status != ELLM_OK) {
        return status;
    }
    VkPhysicalDevice devices[ELLM_VULKAN_DEVICES];
    uint32_t n = ELLM_VULKAN_DEVICES;
    VkResult result = api.EnumeratePhysicalDevices(api.instance, &n, devices);
    status = result < VK_SUCCESS ? ellm_vulkan_failed(result, "looking for GPUs", error) : ELLM_OK;
    buffer json = {0};
    for (int rank = 4; rank >= 0 && status == ELLM_OK; rank--) { /* as one is taken */
        for (uint32_t i = 0; i < n; i++) {
            ellm_vulkan_device device;
            const char *lack = ellm_vulkan_look(&api, devices[i], ELLM_NEEDS_FLOOR, &device);
            if (ellm_vulkan_rank(&device) == rank) {
                put_device(&json, &api, &device, lack);
            }
        }
    }
    status = status == ELLM_OK && json.n > 0 ? output_write(json.data, json.n, error) : status;
    buffer_free(&json);
    ellm_vulkan_unload(&api);
    return status;
}
#endif
