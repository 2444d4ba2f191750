-- Closes an ended task whose Celery result is written. Only its pushes remain.
--
-- task          ns:{id}:task        hash        TTL set here, or by settle_push.lua
-- events        ns:{id}:events      stream      as the record
-- open          ns:open             sorted set  id removed
-- checkpoint    ns:{id}:checkpoint  string      deleted
-- pushes        ns:pushes           sorted set  read
-- id
-- record_ttl_s  time to live of the record
-- kinds         all push kinds
-- Returns 1, or 0 when the task has not ended.
local task, events, open, checkpoint, pushes = unpack(KEYS)
local id, record_ttl_s = unpack(ARGV)
local kinds = {unpack(ARGV, 3)}
local status = redis.call('HGET', task, 'status')
if status == 'queued' or status == 'running' then return 0 end
redis.call('ZREM', open, id)
redis.call('DEL', checkpoint)
for _, kind in ipairs(kinds) do
  if redis.call('ZSCORE', pushes, kind .. ':' .. id) then return 1 end
end
redis.call('EXPIRE', task, record_ttl_s)
redis.call('EXPIRE', events, record_ttl_s)
return 1
