-- Takes pushes that are due. The caller has `hold_s` to try them; then they are due again.
--
-- pushes  ns:pushes  sorted set  scores of the taken members raised
-- most    number of members to take at most
-- hold_s
-- Returns members.
local pushes = unpack(KEYS)
local most, hold_s = unpack(ARGV)
local now = now_s()
local due = redis.call('ZRANGE', pushes, '-inf', now, 'BYSCORE', 'LIMIT', 0, most)
for _, member in ipairs(due) do redis.call('ZADD', pushes, stamp(now + hold_s), member) end
return due
