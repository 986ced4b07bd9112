// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/*
 * An exporter of dma-bufs that move, for tests of their importers: see odp_exporter.h.
 *
 * A GPU moves its buffers; udmabuf and the DMA heaps never do.
 */
#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/dma-resv.h>
#include <linux/fs.h>
#include <linux/gfp.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/scatterlist.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "odp_exporter.h"

#define MAX_SIZE	SZ_1G
/* What is left behind, for whoever looks there still. */
#define STALE		0xdb

/* Where a buffer is: blocks of pages. */
struct blocks {
	unsigned int order;
	size_t count;
	struct page *first[];
};

/* Of one dma-buf; `blocks` and what follows are protected by its reservation. */
struct buffer {
	size_t size;
	struct blocks *blocks;
	struct odp_exported exported;
	struct odp_refuse refuse;
};

/* An open file: the dma-buf, once it is there, with a reference. */
struct exporter {
	struct mutex lock;
	struct dma_buf *dmabuf;
};

static void blocks_free(struct blocks *b)
{
	size_t i;

	for (i = 0; i < b->count && b->first[i]; i++)
		__free_pages(b->first[i], b->order);
	kvfree(b);
}

static struct blocks *blocks_alloc(size_t size, unsigned int order)
{
	size_t count = size >> (PAGE_SHIFT + order);
	struct blocks *b;
	size_t i;

	b = kvzalloc(struct_size(b, first, count), GFP_KERNEL);
	if (!b)
		return NULL;
	b->order = order;
	b->count = count;
	for (i = 0; i < count; i++) {
		b->first[i] = alloc_pages(GFP_KERNEL | __GFP_ZERO | __GFP_COMP, order);
		if (!b->first[i]) {
			blocks_free(b);
			return NULL;
		}
	}
	return b;
}

static void *blocks_at(struct blocks *b, size_t offset)
{
	size_t size = PAGE_SIZE << b->order;

	return page_address(b->first[offset / size]) + offset % size;
}

/* Called with the reservation held. */
static struct sg_table *map_dma_buf(struct dma_buf_attachment *attach,
				    enum dma_data_direction direction)
{
	struct buffer *buf = attach->dmabuf->priv;
	struct sg_table *sgt;
	struct scatterlist *sg;
	int err, i;

	dma_resv_assert_held(attach->dmabuf->resv);
	buf->exported.maps++;
	if (buf->refuse.times) {
		buf->refuse.times--;
		return ERR_PTR(-(int)buf->refuse.error);
	}

	sgt = kzalloc(sizeof(*sgt), GFP_KERNEL);
	if (!sgt)
		return ERR_PTR(-ENOMEM);
	err = sg_alloc_table(sgt, buf->blocks->count, GFP_KERNEL);
	if (err)
		goto free;
	for_each_sgtable_sg(sgt, sg, i)
		sg_set_page(sg, buf->blocks->first[i],
			    PAGE_SIZE << buf->blocks->order, 0);
	err = dma_map_sgtable(attach->dev, sgt, direction, 0);
	if (err)
		goto free_table;
	buf->exported.mapped++;
	return sgt;

free_table:
	sg_free_table(sgt);
free:
	kfree(sgt);
	return ERR_PTR(err);
}

static void unmap_dma_buf(struct dma_buf_attachment *attach, struct sg_table *sgt,
			  enum dma_data_direction direction)
{
	struct buffer *buf = attach->dmabuf->priv;

	buf->exported.mapped--;
	dma_unmap_sgtable(attach->dev, sgt, direction, 0);
	sg_free_table(sgt);
	kfree(sgt);
}

/* It moves all the same: nobody here pins. */
static int pin(struct dma_buf_attachment *attach)
{
	return -EOPNOTSUPP;
}

static void unpin(struct dma_buf_attachment *attach)
{
}

static void release_dma_buf(struct dma_buf *dmabuf)
{
	struct buffer *buf = dmabuf->priv;

	blocks_free(buf->blocks);
	kfree(buf);
}

static const struct dma_buf_ops dma_buf_ops = {
	.map_dma_buf = map_dma_buf,
	.unmap_dma_buf = unmap_dma_buf,
	.pin = pin,
	.unpin = unpin,
	.release = release_dma_buf,
};

static bool is_order(u32 order, size_t size)
{
	return order <= MAX_PAGE_ORDER && IS_ALIGNED(size, PAGE_SIZE << order);
}

static int export(struct exporter *ex, const struct odp_export *arg)
{
	DEFINE_DMA_BUF_EXPORT_INFO(info);
	struct dma_buf *dmabuf;
	struct buffer *buf;
	int fd;

	if (!arg->size || arg->size > MAX_SIZE || arg->reserved ||
	    !is_order(arg->order, arg->size))
		return -EINVAL;
	if (ex->dmabuf)
		return -EBUSY;

	buf = kzalloc(sizeof(*buf), GFP_KERNEL);
	if (!buf)
		return -ENOMEM;
	buf->size = arg->size;
	buf->blocks = blocks_alloc(arg->size, arg->order);
	if (!buf->blocks) {
		kfree(buf);
		return -ENOMEM;
	}
	info.ops = &dma_buf_ops;
	info.size = arg->size;
	info.flags = O_RDWR;
	info.priv = buf;
	dmabuf = dma_buf_export(&info);
	if (IS_ERR(dmabuf)) {
		blocks_free(buf->blocks);
		kfree(buf);
		return PTR_ERR(dmabuf);
	}

	get_dma_buf(dmabuf);
	fd = dma_buf_fd(dmabuf, O_CLOEXEC);
	if (fd < 0) {
		dma_buf_put(dmabuf);
		dma_buf_put(dmabuf);
		return fd;
	}
	ex->dmabuf = dmabuf;
	return fd;
}

static int move(struct dma_buf *dmabuf, u32 order)
{
	struct buffer *buf = dmabuf->priv;
	struct blocks *blocks, *old;
	size_t at;

	if (!is_order(order, buf->size))
		return -EINVAL;
	blocks = blocks_alloc(buf->size, order);
	if (!blocks)
		return -ENOMEM;

	dma_resv_lock(dmabuf->resv, NULL);
	dma_buf_invalidate_mappings(dmabuf);
	old = buf->blocks;
	for (at = 0; at < buf->size; at += PAGE_SIZE) {
		memcpy(blocks_at(blocks, at), blocks_at(old, at), PAGE_SIZE);
		memset(blocks_at(old, at), STALE, PAGE_SIZE);
	}
	buf->blocks = blocks;
	dma_resv_unlock(dmabuf->resv);

	blocks_free(old);
	return 0;
}

static long ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct exporter *ex = file->private_data;
	void __user *user = (void __user *)arg;
	struct odp_exported exported;
	struct odp_refuse refuse;
	struct odp_export export_arg;
	struct buffer *buf;
	u32 order;

	guard(mutex)(&ex->lock);
	if (cmd == ODP_EXPORT) {
		if (copy_from_user(&export_arg, user, sizeof(export_arg)))
			return -EFAULT;
		return export(ex, &export_arg);
	}
	if (!ex->dmabuf)
		return -ENXIO;
	buf = ex->dmabuf->priv;

	switch (cmd) {
	case ODP_MOVE:
		if (copy_from_user(&order, user, sizeof(order)))
			return -EFAULT;
		return move(ex->dmabuf, order);
	case ODP_REFUSE:
		if (copy_from_user(&refuse, user, sizeof(refuse)))
			return -EFAULT;
		if (!refuse.error || refuse.error > MAX_ERRNO)
			return -EINVAL;
		dma_resv_lock(ex->dmabuf->resv, NULL);
		buf->refuse = refuse;
		dma_resv_unlock(ex->dmabuf->resv);
		return 0;
	case ODP_EXPORTED:
		dma_resv_lock(ex->dmabuf->resv, NULL);
		exported = buf->exported;
		dma_resv_unlock(ex->dmabuf->resv);
		return copy_to_user(user, &exported, sizeof(exported)) ? -EFAULT : 0;
	default:
		return -ENOTTY;
	}
}

/*
 * A page at most, by way of a page of our own: nothing of the user's may fault while the
 * reservation is held.
 */
static ssize_t copy(struct file *file, char __user *to, const char __user *from,
		    size_t len, loff_t *pos)
{
	struct exporter *ex = file->private_data;
	struct buffer *buf;
	void *bounce;
	ssize_t done;

	guard(mutex)(&ex->lock);
	if (!ex->dmabuf)
		return -ENXIO;
	buf = ex->dmabuf->priv;
	if (*pos < 0)
		return -EINVAL;
	if (*pos >= buf->size)
		return to ? 0 : -ENOSPC;
	len = min3(len, buf->size - (size_t)*pos, PAGE_SIZE - offset_in_page(*pos));

	bounce = (void *)__get_free_page(GFP_KERNEL);
	if (!bounce)
		return -ENOMEM;
	done = -EFAULT;
	if (from && copy_from_user(bounce, from, len))
		goto free;
	dma_resv_lock(ex->dmabuf->resv, NULL);
	if (to)
		memcpy(bounce, blocks_at(buf->blocks, *pos), len);
	else
		memcpy(blocks_at(buf->blocks, *pos), bounce, len);
	dma_resv_unlock(ex->dmabuf->resv);
	if (to && copy_to_user(to, bounce, len))
		goto free;
	*pos += len;
	done = len;
free:
	free_page((unsigned long)bounce);
	return done;
}

static ssize_t read(struct file *file, char __user *to, size_t len, loff_t *pos)
{
	return copy(file, to, NULL, len, pos);
}

static ssize_t write(struct file *file, const char __user *from, size_t len, loff_t *pos)
{
	return copy(file, NULL, from, len, pos);
}

static int open(struct inode *inode, struct file *file)
{
	struct exporter *ex = kzalloc(sizeof(*ex), GFP_KERNEL);

	if (!ex)
		return -ENOMEM;
	mutex_init(&ex->lock);
	file->private_data = ex;
	return 0;
}

static int release(struct inode *inode, struct file *file)
{
	struct exporter *ex = file->private_data;

	if (ex->dmabuf)
		dma_buf_put(ex->dmabuf);
	kfree(ex);
	return 0;
}

static const struct file_operations operations = {
	.owner = THIS_MODULE,
	.open = open,
	.release = release,
	.read = read,
	.write = write,
	.unlocked_ioctl = ioctl,
	.llseek = default_llseek,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "odp_exporter",
	.fops = &operations,
	.mode = 0600,
};

module_misc_device(device);

MODULE_DESCRIPTION("An exporter of dma-bufs that move, for tests");
MODULE_LICENSE("Dual BSD/GPL");
MODULE_IMPORT_NS("DMA_BUF");
