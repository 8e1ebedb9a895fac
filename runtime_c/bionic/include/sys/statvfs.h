#pragma once
struct statvfs {
    unsigned long f_bsize, f_frsize, f_blocks, f_bfree, f_bavail, f_files, f_ffree, f_favail, f_fsid, f_flag, f_namemax;
    unsigned reserved[6];
};

int statvfs(const char *path, struct statvfs *status);
