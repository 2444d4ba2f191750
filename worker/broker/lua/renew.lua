-- Renews the leases of held messages; one that was requeued meanwhile is not held again.
--
-- unacked_index  sag.unacked_index  sorted set  scores of the tags raised
-- lease_s
-- tags
local unacked_index = unpack(KEYS)
local lease_s = unpack(ARGV)
local tags = {unpack(ARGV, 2)}
local lease_until = now_s() + lease_s
for _, tag in ipairs(tags) do redis.call('ZADD', unacked_index, 'XX', lease_until, tag) end
